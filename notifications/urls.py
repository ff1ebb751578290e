"""Where the webhook calls live, below /api/v1/."""

from django.urls import path

from notifications import views

urlpatterns = [
    path("webhook-endpoints", views.Endpoints.as_view(), name="webhook-endpoints"),
    path("webhook-endpoints/<str:endpoint_id>", views.OneEndpoint.as_view(), name="webhook-endpoint"),
    path("webhook-endpoints/<str:endpoint_id>/secret", views.Secret.as_view(), name="webhook-secret"),
    path("webhook-endpoints/<str:endpoint_id>/deliveries", views.Deliveries.as_view(), name="webhook-deliveries"),
    path("webhook-endpoints/<str:endpoint_id>/replay", views.ReplayMany.as_view(), name="webhook-replay"),
    path(
        "webhook-endpoints/<str:endpoint_id>/deliveries/<str:delivery_id>/replay",
        views.ReplayOne.as_view(),
        name="webhook-delivery-replay",
    ),
]
