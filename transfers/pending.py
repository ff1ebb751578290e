"""What an account can still spend: posted money less holds and less debits that were accepted but not yet posted.

A parked debit is one: it may still be posted. A scheduled one is not until its day has come.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from bankcore.database import fetch_all

# One statement sees one moment: a transfer is either still pending or already posted, never both or neither.
_BALANCE = """
SELECT a.posted_minor, a.held_minor,
       coalesce((SELECT sum(o.amount_minor) FROM transfers_opentransfer AS o
                  WHERE o.debit_account_id = a.id
                    AND o.status IN ('accepted', 'in_review', 'approved', 'parked')), 0)::text,
       statement_timestamp()
  FROM accounts_account AS a
 WHERE a.id = %s
"""


@dataclass(frozen=True, slots=True)
class Balance:
    posted_minor: int
    held_minor: int
    pending_minor: int
    as_of: datetime

    @property
    def available_minor(self) -> int:
        return self.posted_minor - self.held_minor - self.pending_minor


def read_balance(account_id: UUID) -> Balance:
    ((posted_minor, held_minor, pending_minor, as_of),) = fetch_all(_BALANCE, (account_id,))
    return Balance(posted_minor, held_minor, int(pending_minor), as_of)
