"""Where the account calls live, below /api/v1/. The balance is routed from `transfers`, which knows what is pending."""

from django.urls import path

from accounts import views

urlpatterns = [
    path("accounts", views.Accounts.as_view(), name="accounts"),
    path("accounts/<str:account_id>", views.OneAccount.as_view(), name="account"),
    path("accounts/<str:account_id>/entries", views.Entries.as_view(), name="account-entries"),
]
