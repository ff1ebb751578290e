"""The view that every API call is made of."""

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.renderers import JSONRenderer
from rest_framework.views import APIView


class View(APIView):
    """A view that speaks JSON whatever the caller's Accept header says, and names the scope of each of its methods."""

    http_method_names = ["get", "head", "post", "put", "patch", "delete"]
    metadata_class = None

    def perform_content_negotiation(self, request: Any, force: bool = False) -> Any:
        return JSONRenderer(), "application/json"


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = "accounts.access.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}
