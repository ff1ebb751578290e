"""Staff's hand on the breakers: hold one open or closed, or let it go. Kept in the database, applied in Redis."""

import logging

import redis
from django.db import transaction
from django.db.models.functions import Now

from bankcore.messaging import audit, breaker
from bankcore.messaging.models import BreakerSwitch

log = logging.getLogger(__name__)


@transaction.atomic
def switch(name: str, mode: str, *, actor: str, reason: str) -> None:
    """Hold a breaker `open` or `closed`, or leave it to itself (empty mode), from the commit on.

    Safe to repeat. While Redis is away the switch is kept, and applied by `apply_switches`.
    """
    if mode not in breaker.MODES:
        raise ValueError(f"A breaker is forced open, closed, or not at all; not {mode!r}.")
    if mode:
        BreakerSwitch.objects.update_or_create(
            name=name, defaults={"mode": mode, "reason": reason[:500], "set_by": actor, "set_at": Now()}
        )
    else:
        BreakerSwitch.objects.filter(name=name).delete()
    audit.record(
        actor=actor, action=f"breaker.{mode or 'automatic'}", subject=name, reason=reason, details={"mode": mode}
    )
    transaction.on_commit(lambda: _apply(name, mode))


def apply_switches() -> int:
    """Set what Redis has lost or has not heard of; return how many breakers were out of step."""
    wanted = dict(BreakerSwitch.objects.values_list("name", "mode"))
    try:
        shared = {c.name: c.forced for c in breaker.conditions(list(wanted))}
    except (redis.RedisError, OSError):
        return 0
    wrong = [name for name, forced in shared.items() if forced != wanted.get(name, "")]
    for name in wrong:
        _apply(name, wanted.get(name, ""))
    return len(wrong)


def _apply(name: str, mode: str) -> None:
    try:
        breaker.force(name, mode)
    except (redis.RedisError, OSError) as error:
        log.warning("breaker %s: Redis is away, the switch follows: %s", name, error)
