"""Every address of the web process: the API, its schema and pages, the admin, and what machines ask."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from bankcore import health

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="docs"), name="home"),
    path("livez", health.livez, name="livez"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
    path("admin/", admin.site.urls),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    # The split view keeps its script in a file of its own, so that a strict content security policy can hold.
    path("api/docs/", SpectacularSwaggerSplitView.as_view(url_name="schema"), name="docs"),
    path("api/v1/", include("accounts.urls")),
    path("api/v1/", include("transfers.urls")),
    path("api/v1/", include("bankcore.messaging.urls")),
    path("api/v1/", include("notifications.urls")),
]

handler400 = "bankcore.api.bad_request"
handler403 = "bankcore.api.forbidden"
handler404 = "bankcore.api.not_found"
handler500 = "bankcore.api.server_error"
