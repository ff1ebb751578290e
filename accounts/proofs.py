"""What a proof of the books found, how it is kept, and how long a violation stays visible."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection, transaction
from django.utils.module_loading import import_string

from accounts.models import Proof
from bankcore.messaging import seal_checks, seals
from bankcore.messaging.seal_checks import KeptHead

NAMED_MAX = 100
# Held while a proof is written, and by an increment from before it reads the last proof.
PROOF_LOCK = 7216


class Violation(NamedTuple):
    """One thing that does not add up: which check says so, about what, and how."""

    check: str
    subject: str
    detail: str


class Result(NamedTuple):
    """A proof: how many entries were looked at, and per check how many violations and the first hundred by name."""

    entries: int
    counts: dict[str, int]
    violations: list[Violation]
    seconds: float = 0.0

    @property
    def balanced(self) -> bool:
        return not any(self.counts.values())

    def with_earlier(self, counts: dict[str, int], named: Sequence[Violation]) -> "Result":
        """This result and what an earlier proof named; what both name counts once."""
        known = {(violation.check, violation.subject) for violation in self.violations}
        earlier = [violation for violation in named if (violation.check, violation.subject) not in known]
        again = dict.fromkeys(counts, 0)
        for violation in named:
            again[violation.check] = again.get(violation.check, 0) + ((violation.check, violation.subject) in known)
        total = {
            check: self.counts.get(check, 0) + counts.get(check, 0) - again.get(check, 0)
            for check in {**counts, **self.counts}
        }
        return Result(self.entries, total, _first_hundred([*earlier, *self.violations]), self.seconds)


def _first_hundred(violations: Sequence[Violation]) -> list[Violation]:
    kept: list[Violation] = []
    number: dict[str, int] = {}
    for violation in violations:
        number[violation.check] = number.get(violation.check, 0) + 1
        if number[violation.check] <= NAMED_MAX:
            kept.append(violation)
    return kept


def meaning_of(check: str) -> str:
    """What a check says when it finds nothing; an older release's check, which is not known here, says nothing."""
    return next((said for path in settings.BOOKS_MEANINGS if (said := import_string(path).get(check))), "")


def named_by(proof: Proof) -> list[Violation]:
    """The violations that a kept proof names."""
    return [Violation(*one) for one in proof.named]


def newest_proof() -> tuple[int, list[KeptHead]]:
    """The id of the newest proof (0 if there is none), and the heads it saw."""
    proof = Proof.objects.first()
    return (proof.pk, heads_of(proof)) if proof else (0, [])


def heads_of(proof: Proof) -> list[KeptHead]:
    """The heads that the chains had when this proof was made."""
    return [KeptHead(*head) for head in proof.position.get("heads", [])]


def position_after(last_heads: Sequence[KeptHead], counts: dict[str, int]) -> dict[str, Any]:
    """Where increments go on after a full proof: behind the newest blocks, whose heads are remembered.

    When a remembered head was gone, it goes on being looked for: a chain written anew must not pass at the second look.
    """
    heads = seals.heads()
    kept = [KeptHead(chain, head.number, head.hex) for chain, head in heads.items()]
    return {
        "proved": {chain: head.last_id for chain, head in heads.items()},
        "heads": last_heads if counts.get(seal_checks.HEAD_GONE) else kept,
    }


@transaction.atomic
def keep_proof(result: Result, position: dict[str, Any], *, since: int) -> None:
    """Write a full proof. What increments have found first since proof `since` stays; everything earlier is replaced.

    Waits for an increment that is running (it will not write what it read before this proof).
    """
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({PROOF_LOCK})")
    newer = Proof.objects.filter(pk__gt=since).first()
    if newer and newer.kind == Proof.Kind.INCREMENT:
        before = Proof.objects.filter(pk=since).first()
        old = {(violation.check, violation.subject) for violation in (named_by(before) if before else [])}
        fresh = [violation for violation in named_by(newer) if (violation.check, violation.subject) not in old]
        counts = {check: sum(v.check == check for v in fresh) for check in {v.check for v in fresh}}
        result = result.with_earlier(counts, fresh)
        position = {**position, **newer.position, "heads": position["heads"]}
    write_proof(Proof.Kind.FULL, result, position)


def write_proof(kind: str, result: Result, position: dict[str, Any]) -> None:
    Proof.objects.create(
        kind=kind,
        seconds=round(result.seconds, 3),
        entries=result.entries,
        violations=result.counts,
        named=result.violations,
        position=position,
    )
