"""Staff pages of customers, accounts and the journal, and of who may come in."""

from accounts.admin import access, holders, journal

__all__ = ["access", "holders", "journal"]
