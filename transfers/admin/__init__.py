"""The desk: transfers and batches to look at, reviews to decide, the deny list, and the page all of it starts from."""

from django.contrib import admin

from transfers.admin import batch_pages, deny_pages, desk, review_pages, transfer_pages

__all__ = ["batch_pages", "deny_pages", "desk", "review_pages", "transfer_pages"]

admin.site.index_template = "transfers/desk.html"
