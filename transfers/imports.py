"""Taking in a file lot by lot, each as a batch whose key the file itself gives: repeating takes nothing twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction

from accounts.access import BANK_FILES, Client
from bankcore import rate_limits
from bankcore.errors import BankError, FieldError, Invalid
from bankcore.messaging import audit, backpressure
from transfers.batches import ROW_ERRORS_MAX, accept_batch, check_rows
from transfers.errors import BatchRefused
from transfers.lots import Lot, RowSource
from transfers.models import Batch


class CutOtherwise(BankError):
    """Lots of this file have come in that were cut by other limits: what is in which lot would not be the same."""

    code = "cut_otherwise"
    title = "The file was begun with other limits"
    detail = "Nothing was taken in. Repeat the command with the limits of the first run."


class TakenForAnother(BankError):
    """The file came in for another client: for this one, its keys say nothing, and its money would move again."""

    code = "taken_for_another"
    title = "The file came in for another client"
    detail = "Nothing was taken in. Repeat the command for the client of the first run, or give the file a --label."


class LotError(NamedTuple):
    """One thing wrong with one row; `place` is its line or number in the file, 0 if it is about the lot."""

    place: int
    field: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a lot: rows taken now or, `replayed`, before; and all that is wrong with the others."""

    accepted: int
    refused: int
    errors: Sequence[LotError]
    replayed: bool = False
    batch_id: UUID | None = None


@dataclass
class Import:
    """A surveyed file on its way in, for one client. `label` sets apart files of the same bytes that are all meant."""

    source: RowSource
    client: Client
    atomic: bool = False
    label: str = ""

    @cached_property
    def taken_before(self) -> frozenset[int]:
        """The numbers of the lots that came in with an earlier run; read once.

        Raises:
            CutOtherwise: they were cut by other limits.
            TakenForAnother: none did, but some came in for another client.
        """
        kept = Batch.objects.filter(idempotency_key__startswith=self._key)
        mine = kept.filter(client=self.client.namespace)
        keys = [str(key).rsplit(":", 2)[1:] for key in mine.values_list("idempotency_key", flat=True)]
        if not keys and (other_client := kept.values_list("client", flat=True).first()):
            raise TakenForAnother(
                f"It came in for {_described(other_client)}. Repeat the command as it was, so that nothing is taken "
                "twice; if the same file is meant once more, give it a --label of its own."
            )
        if other := next((cut for cut, _ in keys if cut != _cut()), None):
            rows, size = other.split("x")
            raise CutOtherwise(
                f"Its first lots came in with BATCH_TRANSFERS_MAX={rows} and BATCH_BYTES_MAX={size}. Repeat the "
                "command with these settings, so that nothing is taken twice."
            )
        return frozenset(int(number) for _, number in keys)

    @property
    def _key(self) -> str:
        return f"import:{self.source.digest}:{self.label}:"

    def admit(self, lot: Lot) -> None:
        """Ask whether so many rows may come in now, as POST does. One that came in before brings no work, and may.

        Raises:
            Overloaded, RateLimited: not now; `retry_after` says in how many seconds to ask again.
        """
        if lot.number in self.taken_before:
            return
        rows, name = len(lot.rows), self.client.namespace
        priority = backpressure.priority_of(rows, 0)
        backpressure.check(name, rows, priority)
        rate_limits.take("transfers", name, rows).enforce()
        backpressure.admit(name, rows, priority)

    def take(self, lot: Lot) -> Outcome:
        """Take in the good rows of the lot, or with `atomic` all or none, in one transaction with its audit entry.

        Repeating it is safe at any time: a lot that is in is answered as it was.

        Raises:
            IdempotencyKeyReused: the lot came before with other rows, such as in another format or not `atomic`.
        """
        try:
            with transaction.atomic():
                done = accept_batch(
                    lot.rows,
                    atomic=self.atomic,
                    client=self.client,
                    idempotency_key=f"{self._key}{_cut()}:{lot.number}",
                    lines=self._lines(lot),
                    errors_max=settings.BATCH_TRANSFERS_MAX * ROW_ERRORS_MAX,
                )
                if not done.replayed:
                    self._record(lot, done.batch)
        except (Invalid, BatchRefused) as error:
            return Outcome(0, len(lot.rows), _named(lot, error.errors))
        accepted = done.batch.accepted
        errors = _named(lot, done.errors)
        return Outcome(accepted, len(lot.rows) - accepted, errors, replayed=done.replayed, batch_id=done.batch.id)

    def check(self, lot: Lot) -> Outcome:
        """Say what taking the lot in would come to now, and write nothing. An external_id is sought in earlier work and
        in this lot, not in the file's other lots."""
        if lot.number in self.taken_before:
            return self._before(lot)
        good, errors = check_rows(lot.rows, client=self.client, lines=self._lines(lot))
        accepted = 0 if self.atomic and errors else good
        return Outcome(accepted, len(lot.rows) - accepted, _named(lot, errors))

    def _before(self, lot: Lot) -> Outcome:
        batch = Batch.objects.get(client=self.client.namespace, idempotency_key=f"{self._key}{_cut()}:{lot.number}")
        errors = _named(lot, [FieldError(**error) for error in batch.refused])
        return Outcome(batch.accepted, len(lot.rows) - batch.accepted, errors, replayed=True, batch_id=batch.id)

    def _lines(self, lot: Lot) -> Sequence[int]:
        return lot.places if self.source.by_line else ()

    def _record(self, lot: Lot, batch: Batch) -> None:
        details = {
            "client": self.client.namespace, "sha256": self.source.digest, "lot": lot.number, "accepted": batch.accepted
        }  # fmt: skip
        audit.record(actor=audit.operator(), action="batch.import", subject=batch.id, details=details)


def _described(namespace: str) -> str:
    return "the bank itself (without --client)" if namespace == BANK_FILES.namespace else f"the client {namespace}"


def _cut() -> str:
    return f"{settings.BATCH_TRANSFERS_MAX}x{settings.BATCH_BYTES_MAX}"


def _named(lot: Lot, errors: Sequence[FieldError]) -> list[LotError]:
    """Say of each error where in the file its row is, in place of where in the lot."""
    named = []
    for error in errors:
        _, _, rest = error.field.partition(".")
        index, _, name = rest.partition(".")
        place = lot.places[int(index)] if index else 0
        named.append(LotError(place, name, error.code, error.message.removeprefix(f"Line {place}: ")))
    return named
