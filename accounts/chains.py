"""The tables that are chained by hashes: journal and everything below it."""

from bankcore.messaging.seals import CHAINS as MESSAGING_CHAINS
from bankcore.messaging.seals import Chain

ENTRIES = Chain("accounts_journalentry", "journal entry", ("t.id, t.reference::text, t.currency::text, t.created_at",))
LINES = Chain(
    "accounts_journalline",
    "journal line",
    ("t.id, t.entry_id, t.account_id, t.number, t.side::text, t.amount_minor, t.balance_after_minor",),
)
CHAINS: tuple[Chain, ...] = (ENTRIES, LINES, *MESSAGING_CHAINS)
