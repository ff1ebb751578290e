"""Rows to be sealed, and what the seal checks of a full proof name."""

from accounts import ledger
from bankcore.messaging import outbox, seal_checks
from bankcore.messaging.outbox import NewEvent
from transfers import books


def post(debit, credit, *numbers):
    movements = [ledger.Movement(f"r:{number}", debit.pk, credit.pk, 10, "EUR") for number in numbers]
    assert ledger.post(movements) == [ledger.POSTED] * len(numbers)


def record(*subjects):
    outbox.record([NewEvent("transfer.posted", "key", f"subject {subject}", {"a": 1}) for subject in subjects])


def found():
    """What the seal checks of a full proof name."""
    result = books.prove(keep=False)
    return [(v.check, v.subject) for v in result.violations if v.check in seal_checks.CHECKS]


def ids(model, **conditions):
    return list(model.objects.filter(**conditions).order_by("id").values_list("pk", flat=True))
