"""What the proof of the books asks of transfers: each posted one has exactly its entry, and no other has one."""

from collections.abc import Iterable

from accounts import books
from accounts.chains import ENTRIES
from accounts.increments import NewCheck, Sweep, prove_new
from accounts.proofs import Result
from bankcore.messaging.seal_checks import KeptHead
from bankcore.messaging.seals import EVENTS

# The transfer that an entry names; a reference that is no transfer's names none. Only the dashes are left when the hex
# digits are taken out. A regular expression says the same for twice as much.
_TRANSFER_ID = (
    "CASE WHEN e.reference LIKE 'transfer:________-____-____-____-____________'"
    " AND translate(substr(e.reference, 10), '0123456789abcdef', '') = '----'"
    " THEN substr(e.reference, 10)::uuid END"
)
_AS_ASKED = """(SELECT count(*) FILTER (WHERE l.account_id = t.debit_account_id AND l.side = 'D')
                       * count(*) FILTER (WHERE l.account_id = t.credit_account_id AND l.side = 'C')
                  FROM accounts_journalline l WHERE l.entry_id = e.id AND l.amount_minor = t.amount_minor)"""
_DIFFERS = "amount, accounts or currency of the entry differ from what was asked for"

CHECKS = {
    "posted_without_entry": """
        SELECT t.id::text, 'posted, but the journal has no entry'
          FROM transfers_transfer t LEFT JOIN accounts_journalentry e ON e.reference = 'transfer:' || t.id
         WHERE t.status = 'posted' AND e.id IS NULL""",
    "entry_without_posted": """
        SELECT e.reference, format('status %%s', coalesce(t.status, 'missing'))
          FROM accounts_journalentry e
          LEFT JOIN transfers_transfer t ON 'transfer:' || t.id = e.reference
         WHERE e.reference LIKE 'transfer:%%' AND t.status IS DISTINCT FROM 'posted'""",
    "entry_differs_from_transfer": f"""
        SELECT t.id::text, '{_DIFFERS}'
          FROM transfers_transfer t
          JOIN accounts_journalentry e ON e.reference = 'transfer:' || t.id
          LEFT JOIN accounts_journalline d ON d.entry_id = e.id AND d.side = 'D'
               AND d.account_id = t.debit_account_id AND d.amount_minor = t.amount_minor
          LEFT JOIN accounts_journalline c ON c.entry_id = e.id AND c.side = 'C'
               AND c.account_id = t.credit_account_id AND c.amount_minor = t.amount_minor
         WHERE d.id IS NULL OR c.id IS NULL OR e.currency <> t.currency""",
}

MEANINGS = {
    "posted_without_entry": "Every posted transfer has its journal entry.",
    "entry_without_posted": "Every entry of a transfer belongs to one that is posted.",
    "entry_differs_from_transfer": "Every entry moves what its transfer asked for, between its accounts.",
}

NEW_CHECKS = (
    NewCheck(
        ENTRIES.table,
        f"""
    SELECT c.rule, c.subject, c.detail
      FROM accounts_journalentry e LEFT JOIN transfers_transfer t ON t.id = {_TRANSFER_ID}
     CROSS JOIN LATERAL (SELECT
           t.status IS DISTINCT FROM 'posted' AS not_posted,
           t.id IS NOT NULL AND (e.currency <> t.currency OR {_AS_ASKED} = 0) AS differs) AS w
     CROSS JOIN LATERAL (VALUES
           ('entry_without_posted', e.reference, format('status %%s', coalesce(t.status, 'missing')), w.not_posted),
           ('entry_differs_from_transfer', t.id::text, '{_DIFFERS}', w.differs)
           ) AS c(rule, subject, detail, wrong)
     WHERE e.id > %(after)s AND e.id <= %(upto)s AND e.reference LIKE 'transfer:%%'
       AND (w.not_posted OR w.differs) AND c.wrong""",
    ),
    # Transfers have no order in which they are posted; the events that say so have.
    NewCheck(
        EVENTS.table,
        """
    SELECT 'posted_without_entry', v.subject, 'posted, but the journal has no entry'
      FROM messaging_event v
     WHERE v.id > %(after)s AND v.id <= %(upto)s AND v.type = 'transfer.posted'
       AND NOT EXISTS (SELECT FROM accounts_journalentry e WHERE e.reference = 'transfer:' || v.subject)""",
    ),
)
SWEEPS = (
    Sweep(
        "transfers_transfer",
        f"""
    SELECT c.rule, c.subject, c.detail
      FROM swept JOIN transfers_transfer t USING (id)
      LEFT JOIN accounts_journalentry e ON e.reference = 'transfer:' || t.id
     CROSS JOIN LATERAL (VALUES
           ('posted_without_entry', t.id::text, 'posted, but the journal has no entry',
            t.status = 'posted' AND e.id IS NULL),
           ('entry_without_posted', e.reference, format('status %%s', t.status),
            t.status <> 'posted' AND e.id IS NOT NULL),
           ('entry_differs_from_transfer', t.id::text, '{_DIFFERS}',
            e.id IS NOT NULL AND (e.currency <> t.currency OR {_AS_ASKED} = 0))
           ) AS c(rule, subject, detail, wrong)
     WHERE c.wrong""",
    ),
)


def prove(progress: books.Progress = books.silent, keep: bool = True, kept_heads: Iterable[KeptHead] = ()) -> Result:
    """Prove the whole books, transfers and seals included."""
    return books.prove(CHECKS, progress, keep, kept_heads)


def prove_increment() -> Result | None:
    """Prove what is new since the last proof; None if another process is at it."""
    return prove_new(NEW_CHECKS, SWEEPS, CHECKS)
