"""Webhooks: from an event to deliveries, and from a delivery to its end, in order for each endpoint and account.

Nothing is locked while a call is made: a delivery in hand is leased, so that a redelivered message does not send it
twice at a time; a lease that its worker did not outlive ends by itself.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction

from bankcore import metrics
from bankcore.database import execute, fetch_all
from bankcore.messaging import outbox
from bankcore.messaging.pause import is_infrastructure
from bankcore.moments import format_moment
from notifications.channels.webhook import START_SECONDS_MAX, Call, Outcome, sending
from notifications.crowds import crowded, leave
from transfers.events import TransferFact, load_facts

PENDING = "webhook.pending"
# 5 s, 15 s, 45 s, ... at most 6 h apart: about a day in all. Then it is failed, shown, and may be replayed.
ATTEMPTS_MAX = 12
RETRY_SECONDS, RETRY_SECONDS_MAX = 5.0, 6 * 3600.0
# Beyond the last moment at which a call of a message can end, for writing its outcome down.
LEASE_MARGIN_SECONDS = 30.0
WOKEN_MAX = 100


def deliver_webhooks(delivery_ids: Sequence[int]) -> int:
    """Make pending deliveries and return how many arrived.

    Safe to repeat. At least once: a worker that dies after a call and before its outcome is written leaves the call to
    be made again, under the same `webhook-id`. Locks the endpoints' rows, in id order, for two short transactions.
    """
    calls = _claim(delivery_ids)
    if not calls:
        return 0
    try:
        with sending(calls) as lots:
            return sum(_settle(lot) for lot in lots)
    except Exception as error:
        if not is_infrastructure(error):
            # One of them has a bug. Whoever looks for it, half by half, has to find them free.
            execute(_RELEASE, ([call.delivery for call in calls],))
        raise


class _Waiting(NamedTuple):
    id: int
    endpoint: UUID
    event: int
    lane: UUID | None
    is_in_hand: bool
    is_blocked: bool


_ENDPOINTS = """
SELECT id, url, state, secret, CASE WHEN previous_until > statement_timestamp() THEN previous_secret ELSE '' END
  FROM notifications_webhookendpoint
 WHERE id = ANY(%b::uuid[])
    OR id IN (SELECT endpoint_id FROM notifications_webhookdelivery WHERE id = ANY(%b::bigint[]))
 ORDER BY id FOR NO KEY UPDATE
"""
_WAITING = """
SELECT d.id, d.endpoint_id, d.event, d.lane, coalesce(d.claimed_until > statement_timestamp(), false),
       d.lane IS NOT NULL AND EXISTS (
         SELECT FROM notifications_webhookdelivery b
          WHERE b.endpoint_id = d.endpoint_id AND b.lane = d.lane AND b.state = 'pending' AND b.event < d.event
            AND b.id <> ALL(%b::bigint[]))
  FROM notifications_webhookdelivery d
 WHERE d.id = ANY(%b::bigint[]) AND d.state = 'pending' ORDER BY d.event
"""
_LEASE = """
UPDATE notifications_webhookdelivery SET claimed_until = statement_timestamp() + %b * interval '1 second'
 WHERE id = ANY(%b::bigint[])
"""
_RELEASE = """
UPDATE notifications_webhookdelivery SET claimed_until = NULL WHERE id = ANY(%b::bigint[]) AND state = 'pending'
"""
_GIVE_UP = """
UPDATE notifications_webhookdelivery SET state = 'failed', failure = %b, claimed_until = NULL
 WHERE id = ANY(%b::bigint[]) AND state = 'pending'
"""


@transaction.atomic
def _claim(delivery_ids: Sequence[int]) -> list[Call]:
    ids = list(delivery_ids)
    # Whoever claims or settles for an endpoint has its row: so no end of a delivery is missed by the one behind it.
    endpoints = {row[0]: row[1:] for row in fetch_all(_ENDPOINTS, ([], ids))}
    waiting = [_Waiting._make(row) for row in fetch_all(_WAITING, (ids, ids))]
    dead = [w for w in waiting if endpoints[w.endpoint][1] != "active"]
    if dead:
        give_up([w.id for w in dead], "the endpoint is not active")
    alive = [w for w in waiting if endpoints[w.endpoint][1] == "active"]
    # Its worker may have died with it: looked at again when the lease is over.
    outbox.postpone([PENDING], [str(w.id) for w in alive if w.is_in_hand], _lease_seconds())
    crowd = crowded({w.endpoint for w in alive})
    closed, claimed, left = set(), list[_Waiting](), dict[UUID, list[int]]()
    for one in alive:
        lane = (one.endpoint, one.lane)
        if one.is_in_hand or one.is_blocked or lane in closed:
            # Whoever ends the delivery before it wakes it.
            closed |= {lane} if one.lane else set()
        elif one.endpoint in crowd:
            left.setdefault(one.endpoint, []).append(one.id)
            closed |= {lane} if one.lane else set()
        else:
            claimed.append(one)
    leave(PENDING, left)
    execute(_LEASE, (_lease_seconds(), [w.id for w in claimed]))
    facts = {fact.event_id: fact for fact in load_facts(w.event for w in claimed)}
    return [_call(w, facts[w.event], *endpoints[w.endpoint]) for w in claimed]


def give_up(delivery_ids: Sequence[int], why: str) -> None:
    """End pending deliveries as failed: shown, and replayed on demand."""
    number = execute(_GIVE_UP, (why.replace("\x00", "")[:500], list(delivery_ids)))
    metrics.notifications.labels("webhook", "failed").inc(number)


def _lease_seconds() -> float:
    return START_SECONDS_MAX + float(settings.WEBHOOK_TIMEOUT_SECONDS) + LEASE_MARGIN_SECONDS


def _call(waiting: _Waiting, fact: TransferFact, url: str, state: str, *secrets: str) -> Call:
    return Call(
        delivery=waiting.id,
        endpoint=waiting.endpoint,
        lane=waiting.lane,
        url=url,
        secrets=tuple(secret for secret in secrets if secret),
        message_id=f"evt_{fact.event_id}",
        body=json.dumps(payload(fact), ensure_ascii=False, separators=(",", ":")),
    )


def payload(fact: TransferFact) -> dict[str, Any]:
    """What an endpoint is told: the same bytes with every attempt, as none of it ever changes."""
    return {
        "id": f"evt_{fact.event_id}",
        "type": fact.type,
        "timestamp": format_moment(fact.happened_at),
        "data": {
            "transfer": str(fact.transfer),
            "status": fact.type.partition(".")[2],
            "status_reason": fact.reason or None,
            "debit_account": str(fact.debit_account),
            "credit_account": str(fact.credit_account),
            "amount_minor": fact.amount_minor,
            "currency": fact.currency,
            "reference": fact.reference,
        },
    }


# -- the end of a delivery ---------------------------------------------------------------------------------------------

_SETTLE = """
UPDATE notifications_webhookdelivery AS d
   SET attempts = d.attempts + o.counted::int, status_code = coalesce(o.status_code, d.status_code),
       failure = CASE o.result WHEN 'delivered' THEN '' ELSE coalesce(nullif(o.failure, ''), d.failure) END,
       state = CASE WHEN o.result = 'delivered' THEN 'delivered'
                    WHEN d.attempts + o.counted::int >= %b::int THEN 'failed' ELSE 'pending' END,
       delivered_at = CASE o.result WHEN 'delivered' THEN clock_timestamp() END, claimed_until = NULL
  FROM unnest(%b::bigint[], %b::text[], %b::bool[], %b::smallint[], %b::text[])
       AS o(id, result, counted, status_code, failure)
 WHERE d.id = o.id AND d.state = 'pending'
RETURNING d.id, d.state, d.attempts
"""
# The next in each lane, unless somebody has them in hand.
_BEHIND = """
SELECT n.id FROM unnest(%b::uuid[], %b::uuid[]) AS l(endpoint, lane)
 CROSS JOIN LATERAL (
   SELECT id, claimed_until FROM notifications_webhookdelivery
    WHERE endpoint_id = l.endpoint AND lane = l.lane AND state = 'pending' ORDER BY event LIMIT %b) AS n
 WHERE coalesce(n.claimed_until <= statement_timestamp(), true)
"""


@transaction.atomic
def _settle(outcomes: Sequence[Outcome]) -> int:
    """Write down how calls went, plan what is to be tried again, and wake what waited behind those that ended."""
    fetch_all(_ENDPOINTS, (list({o.call.endpoint for o in outcomes}), []))
    rows = fetch_all(
        _SETTLE,
        (
            ATTEMPTS_MAX,
            [o.call.delivery for o in outcomes],
            [o.result for o in outcomes],
            [o.result in ("delivered", "failed") for o in outcomes],
            [o.status_code for o in outcomes],
            [o.failure for o in outcomes],
        ),
    )
    ends = {row[0]: (row[1], row[2]) for row in rows}
    _plan([o for o in outcomes if o.result in ("failed", "held")], ends)
    _wake_behind(outcomes, ends)
    _measure(outcomes, ends)
    return sum(o.result == "delivered" for o in outcomes)


def _wake_behind(outcomes: Sequence[Outcome], ends: dict[int, tuple[str, int]]) -> None:
    ended: set[tuple[UUID, UUID]] = set()
    waiting: set[tuple[UUID, UUID]] = set()
    for outcome in outcomes:
        if outcome.call.lane:
            is_waiting = ends.get(outcome.call.delivery, ("", 0))[0] == "pending"
            (waiting if is_waiting else ended).add((outcome.call.endpoint, outcome.call.lane))
    # Where one waits for its next try, those behind it wait as well.
    if lanes := list(ended - waiting):
        behind = fetch_all(_BEHIND, ([e for e, _ in lanes], [lane for _, lane in lanes], WOKEN_MAX))
        outbox.postpone([PENDING], [str(row[0]) for row in behind], 0.0)


def _plan(outcomes: Iterable[Outcome], ends: dict[int, tuple[str, int]]) -> None:
    delays: dict[float, list[str]] = {}
    for outcome in outcomes:
        state, attempts = ends.get(outcome.call.delivery, ("", 0))
        if state == "pending":
            tried = outcome.result == "failed"
            delay = retry_seconds(attempts) if tried else max(1.0, round(outcome.seconds))
            delays.setdefault(delay, []).append(str(outcome.call.delivery))
    for delay, subjects in delays.items():
        outbox.postpone([PENDING], subjects, delay)


def retry_seconds(attempts: int) -> float:
    """How long to wait after so many attempts."""
    return float(min(RETRY_SECONDS * 3.0 ** (attempts - 1), RETRY_SECONDS_MAX))


def _measure(outcomes: Sequence[Outcome], ends: dict[int, tuple[str, int]]) -> None:
    for outcome in outcomes:
        state, _ = ends.get(outcome.call.delivery, ("", 0))
        if outcome.result == "failed" and state == "pending":
            metrics.retries.labels(
                "webhooks", f"status {outcome.status_code}" if outcome.status_code else "error"
            ).inc()
        elif outcome.result != "released":
            metrics.notifications.labels("webhook", outcome.result).inc()


# -- from an event to deliveries ---------------------------------------------------------------------------------------

_LISTENING = """
SELECT id, customer, event_types, ordered FROM notifications_webhookendpoint
 WHERE state = 'active' AND (customer IS NULL OR customer = ANY(%b::uuid[]))
"""
_INSERT = """
INSERT INTO notifications_webhookdelivery (endpoint_id, event, type, transfer, lane)
SELECT * FROM unnest(%b::uuid[], %b::bigint[], %b::text[], %b::uuid[], %b::uuid[])
    ON CONFLICT (event, endpoint_id) DO NOTHING
RETURNING id, transfer
"""


def draft_deliveries(facts: Sequence[TransferFact], concerned: Sequence[Sequence[UUID]]) -> list[outbox.NewEvent]:
    """Write one delivery for each event and endpoint that wants it, and return the events that ask for them.

    `concerned` are the customers who may hear of each fact. Call inside a transaction. Safe to repeat.
    """
    listening = fetch_all(_LISTENING, (list({customer for some in concerned for customer in some}),))
    wanted = [
        (endpoint, fact.event_id, fact.type, fact.transfer, fact.debit_account if ordered else None)
        for fact, customers in zip(facts, concerned, strict=True)
        for endpoint, customer, event_types, ordered in listening
        if fact.type in event_types and (customer is None or customer in customers)
    ]
    if not wanted:
        return []
    rows = fetch_all(_INSERT, [list(column) for column in zip(*wanted, strict=True)])
    return [outbox.NewEvent(type=PENDING, partition_key=str(row[1]), subject=str(row[0])) for row in rows]


# -- what the broker lost ----------------------------------------------------------------------------------------------

_LOST = """
SELECT d.id FROM notifications_webhookdelivery d
 WHERE d.state = 'pending' AND coalesce(d.claimed_until <= statement_timestamp(), true)
   AND (d.lane IS NULL OR NOT EXISTS (
         SELECT FROM notifications_webhookdelivery b
          WHERE b.endpoint_id = d.endpoint_id AND b.lane = d.lane AND b.state = 'pending' AND b.event < d.event))
   AND (SELECT e.published_at FROM messaging_event e WHERE e.subject = d.id::text AND e.type = 'webhook.pending'
         ORDER BY e.id DESC LIMIT 1) < statement_timestamp() - %b * interval '1 second'
 ORDER BY d.id LIMIT %b
"""


def redrive(lost_seconds: float, number_max: int) -> int:
    """Make deliveries due again whose message was published so long ago and came to nothing; harmless when wrong."""
    return outbox.postpone([PENDING], [str(row[0]) for row in fetch_all(_LOST, (float(lost_seconds), number_max))], 0.0)
