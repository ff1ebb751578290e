"""What became of transfers: their ends, the balances, and the journal's entries in their order."""

from accounts.models import Account, JournalEntry
from transfers.models import Transfer


def balances(*accounts):
    found = Account.objects.in_bulk([account.pk for account in accounts])
    return [found[account.pk].posted_minor for account in accounts]


def ends(*transfers):
    found = Transfer.objects.in_bulk([transfer.pk for transfer in transfers])
    return [(found[t.pk].status, found[t.pk].status_reason) for t in transfers]


def entries():
    return list(
        JournalEntry.objects.filter(reference__startswith="transfer:")
        .order_by("id")
        .values_list("reference", flat=True)
    )
