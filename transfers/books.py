"""What the proof of the books asks of transfers: each posted one has exactly its entry, and no other has one."""

from collections.abc import Callable

from accounts import books

CHECKS = {
    "posted_without_entry": """
        SELECT t.id::text, 'posted, but the journal has no entry'
          FROM transfers_transfer t LEFT JOIN accounts_journalentry e ON e.reference = 'transfer:' || t.id
         WHERE t.status = 'posted' AND e.id IS NULL""",
    "entry_without_posted": """
        SELECT e.reference, format('status %%s', coalesce(t.status, 'missing'))
          FROM accounts_journalentry e
          LEFT JOIN transfers_transfer t ON t.id = substr(e.reference, 10)::uuid
         WHERE e.reference LIKE 'transfer:%%' AND t.status IS DISTINCT FROM 'posted'""",
    "entry_differs_from_transfer": """
        SELECT t.id::text, 'amount, accounts or currency of the entry differ from what was asked for'
          FROM transfers_transfer t
          JOIN accounts_journalentry e ON e.reference = 'transfer:' || t.id
          LEFT JOIN accounts_journalline d ON d.entry_id = e.id AND d.side = 'D'
               AND d.account_id = t.debit_account_id AND d.amount_minor = t.amount_minor
          LEFT JOIN accounts_journalline c ON c.entry_id = e.id AND c.side = 'C'
               AND c.account_id = t.credit_account_id AND c.amount_minor = t.amount_minor
         WHERE d.id IS NULL OR c.id IS NULL OR e.currency <> t.currency""",
}


def prove(progress: Callable[[str], None] = lambda name: None, keep: bool = True) -> books.Result:
    """Prove the whole books, transfers included."""
    return books.prove(CHECKS, progress, keep)
