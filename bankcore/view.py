"""The view that every API call is made of, and how it appears in the schema."""

from typing import Any

from drf_spectacular.contrib.pydantic import PydanticExtension
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.plumbing import ResolvedComponent
from rest_framework.renderers import JSONRenderer
from rest_framework.views import APIView

from bankcore import rate_limits
from bankcore.rate_limits import Standing


class View(APIView):
    """A view that speaks JSON whatever the caller's Accept header says, and names the scope of each of its methods."""

    http_method_names = ["get", "head", "post", "put", "patch", "delete"]
    metadata_class = None
    # Set by a method that spends of a rate limit; goes out with every answer, refusals included.
    standing: Standing | None = None

    def spend(self, name: str, identity: str, cost: int = 1) -> None:
        """Use up `cost` of the caller's rate limit of this name.

        Raises:
            RateLimited: it is used up.
        """
        self.standing = rate_limits.take(name, identity, cost)
        self.standing.enforce()

    def see_what_is_left(self, name: str, identity: str) -> None:
        """Turn away a caller who has nothing left of its rate limit, and use up nothing.

        Raises:
            RateLimited: it is used up.
        """
        self.standing = rate_limits.look(name, identity)
        self.standing.enforce()

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        if self.standing is not None:
            for header, value in self.standing.headers.items():
                response[header] = value
        return response

    def perform_content_negotiation(self, request: Any, force: bool = False) -> Any:
        return _JSON, "application/json"

    @property
    def allowed_methods(self) -> list[str]:
        """The methods that the view has; looked for once, as DRF names them in every answer."""
        known = _METHODS.get(type(self))
        if known is None:
            known = _METHODS[type(self)] = super().allowed_methods
        return known


_JSON = JSONRenderer()
_METHODS: dict[type[View], list[str]] = {}


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = "accounts.access.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}


class PydanticScheme(PydanticExtension):
    """Describe pydantic models in OpenAPI 3.0, which says `nullable` where JSON Schema has a null type."""

    target_class = "pydantic.BaseModel"
    match_subclasses = True
    priority = 1

    def map_serializer(self, auto_schema: Any, direction: str) -> Any:
        mode: Any = "validation" if direction == "request" else "serialization"
        schema = self.target.model_json_schema(ref_template="#/components/schemas/{model}", mode=mode)
        for name, inner in schema.pop("$defs", {}).items():
            component = ResolvedComponent(
                name=name, type=ResolvedComponent.SCHEMA, object=name, schema=_as_openapi_30(inner)
            )
            auto_schema.registry.register_on_missing(component)
        return _as_openapi_30(schema)


def _as_openapi_30(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_as_openapi_30(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _as_openapi_30(inner) for name, inner in schema.items()}
    choices = schema.get("anyOf", ())
    if {"type": "null"} in choices:
        others = [_as_openapi_30(choice) for choice in choices if choice != {"type": "null"}]
        del plain["anyOf"]
        plain |= others[0] if len(others) == 1 and "$ref" not in others[0] else {"anyOf": others}
        plain["nullable"] = True
    return plain
