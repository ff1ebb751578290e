"""The published schema is the one the code makes, and names every call of the contract."""

from pathlib import Path

import pytest
import yaml
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiYamlRenderer
from drf_spectacular.validation import validate_schema

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "openapi.yaml"


@pytest.mark.django_db
def test_the_published_schema_is_current_and_valid() -> None:
    schema = SchemaGenerator().get_schema(request=None, public=True)

    validate_schema(schema)
    assert not GENERATOR_STATS
    made = OpenApiYamlRenderer().render(schema, renderer_context={})
    assert PUBLISHED.read_bytes() == made, "run: python manage.py spectacular --file docs/openapi.yaml"


def test_every_call_of_the_contract_is_documented() -> None:
    paths = yaml.safe_load(PUBLISHED.read_text())["paths"]

    documented = {(method.upper(), path) for path, calls in paths.items() for method in calls}
    assert {
        ("POST", "/api/v1/transfers"),
        ("GET", "/api/v1/transfers"),
        ("GET", "/api/v1/transfers/{transfer_id}"),
        ("POST", "/api/v1/transfers/{transfer_id}/cancel"),
        ("GET", "/api/v1/transfers/{transfer_id}/timeline"),
        ("POST", "/api/v1/batches"),
        ("GET", "/api/v1/batches/{batch_id}"),
        ("GET", "/api/v1/batches/{batch_id}/transfers"),
        ("GET", "/api/v1/accounts"),
        ("POST", "/api/v1/accounts"),
        ("GET", "/api/v1/accounts/{account_id}"),
        ("GET", "/api/v1/accounts/{account_id}/entries"),
        ("GET", "/api/v1/accounts/{account_id}/balance"),
        ("GET", "/api/v1/dead-letters"),
        ("GET", "/api/v1/dead-letters/{letter_id}"),
        ("POST", "/api/v1/dead-letters/replay"),
        ("POST", "/api/v1/dead-letters/{letter_id}/replay"),
        ("POST", "/api/v1/dead-letters/{letter_id}/discard"),
        ("POST", "/api/v1/dead-letters/{letter_id}/approve"),
        ("GET", "/api/v1/webhook-endpoints"),
        ("POST", "/api/v1/webhook-endpoints"),
        ("GET", "/api/v1/webhook-endpoints/{endpoint_id}"),
        ("DELETE", "/api/v1/webhook-endpoints/{endpoint_id}"),
        ("GET", "/api/v1/webhook-endpoints/{endpoint_id}/deliveries"),
        ("POST", "/api/v1/webhook-endpoints/{endpoint_id}/replay"),
        ("POST", "/api/v1/webhook-endpoints/{endpoint_id}/deliveries/{delivery_id}/replay"),
    } <= documented
