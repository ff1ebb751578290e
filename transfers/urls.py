"""Where the transfer calls live, below /api/v1/."""

from django.urls import path

from transfers import views

urlpatterns = [
    path("transfers", views.Transfers.as_view(), name="transfers"),
    path("transfers/<str:transfer_id>", views.OneTransfer.as_view(), name="transfer"),
    path("transfers/<str:transfer_id>/cancel", views.Cancel.as_view(), name="transfer-cancel"),
    path("transfers/<str:transfer_id>/timeline", views.TransferTimeline.as_view(), name="transfer-timeline"),
    path("batches", views.Batches.as_view(), name="batches"),
    path("batches/<str:batch_id>", views.OneBatch.as_view(), name="batch"),
    path("batches/<str:batch_id>/transfers", views.BatchTransfers.as_view(), name="batch-transfers"),
    path("accounts/<str:account_id>/balance", views.AccountBalance.as_view(), name="account-balance"),
]
