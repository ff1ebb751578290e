"""What an account held at a past moment, read from the journal."""

from datetime import datetime
from uuid import UUID

from accounts.models import JournalLine


def posted_minor_at(account_id: UUID, moment: datetime) -> int:
    """Return the balance after the last journal line written up to `moment`; nothing was there before the first."""
    lines = JournalLine.objects.filter(account_id=account_id, entry__created_at__lte=moment).order_by("-number")
    return lines.values_list("balance_after_minor", flat=True).first() or 0
