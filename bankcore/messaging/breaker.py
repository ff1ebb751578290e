"""Circuit breakers around systems that are not ours. What an open breaker refuses costs nobody a retry.

The state is shared by all workers in Redis, one atomic script a step. While Redis is away each process keeps its own
breaker, which one failure opens: to stop asking too early is the safe side. A breaker decides about calls, never about
money: whoever is refused holds the work back or has a person look at it.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from bankcore import metrics
from bankcore.messaging.breaker_rules import Policy, Reply, Rules

log = logging.getLogger(__name__)

# As in the metric: 0 closed, 1 half open, 2 open.
LEVELS = {"closed": 0, "half_open": 1, "open": 2}
MODES = ("open", "closed", "")
REDIS_TIMEOUT_SECONDS = 0.25
# Redis that did not answer is left alone for so long, so that its absence costs little.
REDIS_AWAY_SECONDS = 1.0
ERROR_CHARACTERS_MAX = 300
LISTED_MAX = 1000
_NAMES = "{bankcore:breakers}"
_SCRIPT = (Path(__file__).parent / "breaker.lua").read_text()


class BreakerOpen(ConnectionError):
    """The other side is not to be asked now: infrastructure, hence waited for and never counted against the work."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"the breaker {name} is open")
        self.name = name
        self.retry_after = retry_after


class Permit(NamedTuple):
    """The right to make one call. `local` tells which of the two breakers gave it and has to hear of the result."""

    generation: int
    token: str
    local: bool


@dataclass(frozen=True, slots=True)
class Condition:
    """A breaker as staff and Prometheus see it."""

    name: str
    state: str
    forced: str = ""
    since: datetime | None = None
    open_until: datetime | None = None
    error: str = ""
    error_at: datetime | None = None

    @property
    def effective(self) -> str:
        return self.forced or self.state


class Breaker:
    """A breaker by name: every `Breaker("email")` in every process is the same one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.policy = Policy(
            calls_min=settings.BREAKER_CALLS_MIN,
            open_seconds=settings.BREAKER_OPEN_SECONDS,
            open_seconds_max=max(settings.BREAKER_OPEN_SECONDS, settings.BREAKER_OPEN_SECONDS_MAX),
        )

    @contextmanager
    def call(self, *failures: type[BaseException]) -> Iterator[None]:
        """Make one call inside the block; exceptions of these types (any, if none is named) tell that it failed.

        Raises:
            BreakerOpen: the call must not be made; `retry_after` is in seconds.
        """
        permit = self.admit()
        try:
            yield
        except Exception as error:
            if failures and not isinstance(error, failures):
                self.settle(permit, ok=None)
                raise
            self.settle(permit, ok=False, error=f"{type(error).__name__}: {error}")
            raise
        except BaseException:
            self.settle(permit, ok=None)
            raise
        self.settle(permit, ok=True)

    def admit(self) -> Permit:
        """Ask for one call, whose result `settle` has to be told of.

        Raises:
            BreakerOpen: not now.
        """
        token, local = uuid4().hex, False
        reply = _ask("admit", self.name, round(self.policy.probe_seconds * 1000), token)
        if reply is None:
            reply, local = _local(self.name).admit(_now_ms(), self._alone(), token), True
        else:
            # Remembered for the time when Redis is away: what staff has switched off stays off.
            _local(self.name).forced = reply.forced
        if not reply.admitted:
            metrics.breaker_refusals.labels(_kind(self.name)).inc()
            raise BreakerOpen(self.name, max(reply.wait_ms, 1) / 1000)
        return Permit(reply.generation, token, local)

    def settle(self, permit: Permit, *, ok: bool | None, error: str = "") -> None:
        """Tell how the call went; None: nothing was learned of the other side."""
        outcome = {True: "ok", False: "bad", None: "none"}[ok]
        jitter = random.uniform(0.8, 1.2)  # noqa: S311  Not a secret.
        policy = self.policy
        reply: Reply | None
        if permit.local:
            local = _local(self.name)
            reply = local.settle(_now_ms(), self._alone(), permit.generation, permit.token, outcome, jitter)
        else:
            reply = _ask(
                "settle", self.name, permit.generation, permit.token, outcome, error[:ERROR_CHARACTERS_MAX],
                round(policy.window_seconds * 1000), policy.calls_min, policy.failure_ratio,
                round(policy.open_seconds * 1000), round(policy.open_seconds_max * 1000), policy.trials, jitter,
            )  # fmt: skip
        if reply is not None and reply.wait_ms:
            log.warning("breaker %s is %s: %s", self.name, reply.state, error or "the other side answers again")

    def _alone(self) -> Policy:
        return replace(self.policy, calls_min=1)


def force(name: str, mode: str) -> None:
    """Hold a breaker `open` or `closed` until told otherwise, or leave it to itself again (empty).

    Raises:
        redis.RedisError: the shared state cannot be reached.
    """
    if mode not in MODES:
        raise ValueError(f"A breaker is forced open, closed, or not at all; not {mode!r}.")
    _script()(keys=[_key(name), _NAMES], args=["force", name, "", mode])


def conditions(known: Sequence[str] = ()) -> list[Condition]:
    """List every breaker that has been used within a week, and those of these names, in the order of their names.

    Raises:
        redis.RedisError: the shared state cannot be reached.
    """
    client = _redis(settings.REDIS_URL)
    names = {name.decode() for name in client.zrange(_NAMES, -LISTED_MAX, -1)}
    in_order = sorted(names | set(known))
    pipeline = client.pipeline(transaction=False)
    for name in in_order:
        pipeline.hgetall(_key(name))
    found = list(zip(in_order, pipeline.execute(), strict=True))
    if gone := [name for name, fields in found if not fields and name in names]:
        client.zrem(_NAMES, *gone)
    return [_condition(name, fields) for name, fields in found if fields or name in known]


def _condition(name: str, fields: dict[bytes, bytes]) -> Condition:
    text = {key.decode(): value.decode(errors="replace") for key, value in fields.items()}
    return Condition(
        name=name,
        state=text.get("state", "closed"),
        forced=text.get("forced", ""),
        since=_moment(text.get("since")),
        open_until=_moment(text.get("open_until")),
        error=text.get("error", ""),
        error_at=_moment(text.get("error_at")),
    )


def _moment(milliseconds: str | None) -> datetime | None:
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC) if milliseconds else None


def _kind(name: str) -> str:
    """Name the sort of breaker: endpoints are many, and a counter for each would never go away."""
    return name.partition(":")[0]


# -- the shared state --------------------------------------------------------------------------------------------------

_away_until = float("-inf")


def _ask(step: str, name: str, *arguments: Any) -> Reply | None:
    """Take one step in Redis; None while it is away."""
    global _away_until
    if time.monotonic() < _away_until:
        metrics.breaker_fallbacks.inc()
        return None
    try:
        reply = _script()(keys=[_key(name), _NAMES], args=[step, name, "", *arguments])
    except (redis.RedisError, OSError) as error:
        if _away_until == float("-inf"):
            log.error("breakers: Redis is away, each process decides alone: %s", error)
        _away_until = time.monotonic() + REDIS_AWAY_SECONDS
        metrics.breaker_fallbacks.inc()
        return None
    if _away_until != float("-inf"):
        log.warning("breakers: Redis is back, all workers decide together")
        _away_until = float("-inf")
    return _reply(reply)


def _reply(reply: list[Any]) -> Reply:
    admitted, wait, generation, state, forced = reply
    return Reply(bool(admitted), int(wait), int(generation), state.decode(), forced.decode())


def _key(name: str) -> str:
    return f"{_NAMES}:{name}"


@cache
def _redis(url: str) -> Any:
    return redis.Redis.from_url(
        url,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def _script() -> Any:
    return _registered(settings.REDIS_URL)


@cache
def _registered(url: str) -> Any:
    return _redis(url).register_script(_SCRIPT)


# -- this process alone ------------------------------------------------------------------------------------------------

_locals: dict[str, Rules] = {}
_locals_lock = threading.Lock()
LOCALS_MAX = 10_000


def _local(name: str) -> Rules:
    with _locals_lock:
        if len(_locals) >= LOCALS_MAX:
            _locals.clear()
        return _locals.setdefault(name, Rules())


def _now_ms() -> int:
    return int(time.monotonic() * 1000)
