"""One route, as in bankcore."""

from django.urls import path

from compose.naive.views import TransferView

urlpatterns = [path("api/v1/transfers", TransferView.as_view())]
