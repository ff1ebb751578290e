"""Sabotage, each act behind a switch: a file of its name in the folder SABOTAGE. No product code knows of it."""

import os
from pathlib import Path
from typing import Any

from django.apps import AppConfig

EARLY_ACK, MARK_FIRST, NO_GUARD, TALL_TALES = "early_ack", "mark_first", "no_guard", "tall_tales"


def on(act: str) -> bool:
    return (Path(os.environ["SABOTAGE"]) / act).exists()


class Broken(AppConfig):
    name = "tests.faults"
    label = "broken"

    def ready(self) -> None:
        _declare_queues_for_many_consumers()
        _acknowledge_before_the_work()
        _mark_before_the_broker_has_it()
        _post_what_is_posted()
        _tell_what_did_not_happen()


def _declare_queues_for_many_consumers() -> None:
    """Of all sabotage this alone has no switch: a queue keeps what it was declared with. One consumer makes it good."""
    from bankcore import celery_app, topology

    lawful = topology._work_arguments

    def without_single_active_consumer(name: str) -> dict[str, Any]:
        return {key: value for key, value in lawful(name).items() if key != "x-single-active-consumer"}

    topology._work_arguments = without_single_active_consumer
    for queue in celery_app.conf.task_queues:
        queue.queue_arguments.pop("x-single-active-consumer", None)


def _acknowledge_before_the_work() -> None:
    """Switched when a worker starts. `acks_late` alone does not do it: a solo worker sends its acks between tasks."""
    from celery.app.amqp import AMQP

    lawful = AMQP.TaskConsumer

    def task_consumer(self: Any, *rest: Any, **more: Any) -> Any:
        return lawful(self, *rest, **more, no_ack=on(EARLY_ACK))

    AMQP.TaskConsumer = task_consumer


def _mark_before_the_broker_has_it() -> None:
    from bankcore.messaging.relay import Relay

    deliver = Relay.deliver

    def mark_first(self: Relay, database: Any, rows: Any) -> int:
        if on(MARK_FIRST):
            self._mark(database, [row[0] for row in rows], {row[0]: row[4] for row in rows})
        return deliver(self, database, rows)

    Relay.deliver = mark_first  # type: ignore[method-assign]


def _post_what_is_posted() -> None:
    from transfers import posting
    from transfers.states import Status

    claim = posting.claim

    def claim_all(transfer_ids: Any, *, status: Any) -> Any:
        return claim(transfer_ids, status=[*status, Status.POSTED] if on(NO_GUARD) else status)

    posting.claim = claim_all


def _tell_what_did_not_happen() -> None:
    from notifications import dispatch

    compose = dispatch._compose

    def tell(fact: Any, *rest: Any, **more: Any) -> Any:
        rejected = fact.type == "transfer.rejected" and on(TALL_TALES)
        return compose(fact._replace(type="transfer.posted") if rejected else fact, *rest, **more)

    dispatch._compose = tell
