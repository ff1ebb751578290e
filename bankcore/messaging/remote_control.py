"""What others may have a worker do over the broker: answer questions about itself, and nothing else.

Celery obeys whoever can publish to its control exchange, without a signature: one message would stop every worker, or
take its queues away for good. Here only questions are known, unless REMOTE_CONTROL says otherwise. Whatever else
arrives is counted and ignored; nothing that arrives ends the worker or its connection.
"""

import logging
import queue
import threading
from dataclasses import dataclass
from typing import Any

from celery.worker.consumer.control import Control
from celery.worker.control import Panel
from celery.worker.pidbox import Pidbox
from django.conf import settings

from bankcore import metrics

log = logging.getLogger(__name__)

# What Flower and `celery inspect` ask. Not among them: `hello`, which also brings ids to be thrown away unhandled, and
# what costs a worker more than the answer is worth (`report`, `objgraph`, `memdump`, `memsample`).
_ABOUT_THE_WORKER = ("ping", "stats", "conf", "clock", "registered", "active_queues")
_ABOUT_ITS_TASKS = ("active", "reserved", "scheduled", "revoked", "query_task")
QUESTIONS = frozenset((*_ABOUT_THE_WORKER, *_ABOUT_ITS_TASKS))
# No name, key or ticket of Celery's own is longer.
NAME_LENGTH_MAX = 200
# Answers that may wait to be sent.
ANSWERS_MAX = 100


class Malformed(Exception):
    """No control message as Celery writes them."""


@dataclass(frozen=True)
class Command:
    """A control message whose parts are what they should be."""

    method: str
    arguments: dict[str, Any]
    destination: list[str] | None
    reply_to: dict[str, str] | None
    ticket: str | None

    @classmethod
    def read(cls, body: Any, *, reply_exchange: str) -> "Command":
        """Raises: Malformed."""
        if not isinstance(body, dict) or not _is_name(body.get("method")):
            raise Malformed("It names no command.")
        arguments = body.get("arguments") or {}
        if not isinstance(arguments, dict):
            raise Malformed("Its arguments are none.")
        if body.get("pattern") is not None or body.get("matcher") is not None:
            # A regular expression of a stranger's can keep a worker busy for hours.
            raise Malformed("It picks workers by a pattern; name them.")
        destination = body.get("destination") or None
        if destination is not None and not (isinstance(destination, list) and all(map(_is_name, destination))):
            raise Malformed("Its destination is no list of names.")
        ticket, reply_to = body.get("ticket"), body.get("reply_to") or None
        if ticket is not None and not _is_name(ticket):
            raise Malformed("Its ticket is none.")
        if reply_to is not None:
            # A worker may publish where others may not: it answers where answers go.
            if not isinstance(reply_to, dict) or reply_to.get("exchange") != reply_exchange:
                raise Malformed(f"It wants the answer elsewhere than in {reply_exchange}.")
            if not _is_name(reply_to.get("routing_key")):
                raise Malformed("It does not say who wants the answer.")
        return cls(body["method"], arguments, destination, reply_to, ticket)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= NAME_LENGTH_MAX and value.isascii()


class QuestionBox(Pidbox):
    """A worker's mailbox that knows no commands but questions.

    Answers are sent from a thread. They leave on a connection of their own, perhaps to a node that takes nothing just
    now (it is frozen, or has an alarm), and kombu waits for that one for as long as it lasts: the worker must not.
    """

    def __init__(self, consumer: Any) -> None:
        super().__init__(consumer)
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue(ANSWERS_MAX)
        self._send, self.node.reply = self.node.reply, self._answer
        self._is_answering = False
        if not settings.REMOTE_CONTROL:
            self.node.handlers = {name: answer for name, answer in Panel.data.items() if name in QUESTIONS}

    def start(self, consumer: Any) -> None:
        super().start(consumer)
        self.consumer.on_decode_error = self.on_decode_error

    def on_decode_error(self, message: Any, error: Exception) -> None:
        # Nothing is acknowledged here, so there is nothing to reject: the broker would close the channel.
        _ignore("unreadable", f"{type(error).__name__}: {error}")

    def on_message(self, body: Any, message: Any) -> None:
        try:
            command = Command.read(body, reply_exchange=self.node.mailbox.reply_exchange.name)
        except Malformed as why:
            return _ignore("malformed", str(why))
        if command.destination and self.hostname not in command.destination:
            return None
        try:
            if command.method not in self.node.handlers:
                return self._refuse(command)
            self.node.dispatch(command.method, command.arguments, command.reply_to, command.ticket)
        except Exception:
            log.exception("%s cannot be answered", command.method)
            self.reset()

    def _answer(self, *answer: Any, **address: Any) -> None:
        if not self._is_answering:
            self._is_answering = True
            threading.Thread(target=self._keep_answering, name="answers", daemon=True).start()
        try:
            self._answers.put_nowait((answer, address))
        except queue.Full:
            log.warning("an answer is not sent: %s others wait for the broker to take them", ANSWERS_MAX)

    def _keep_answering(self) -> None:
        while True:
            answer, address = self._answers.get()
            try:
                self._send(*answer, **address)
            except Exception:
                log.exception("an answer could not be sent")

    def _refuse(self, command: Command) -> None:
        _ignore("not allowed", command.method)
        if command.reply_to:
            told = {"error": f"{command.method} is no question, and this worker answers nothing else (REMOTE_CONTROL)."}
            self.node.reply({self.hostname: told}, **command.reply_to, ticket=command.ticket)


def _ignore(cause: str, detail: str) -> None:
    log.warning("ignored a control message that is %s: %s", cause, detail[:NAME_LENGTH_MAX])
    metrics.control_ignored.labels(cause).inc()


class Questions(Control):
    """The step of a worker that opens the mailbox."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        box = self.box = QuestionBox(consumer)
        self.start, self.stop, self.shutdown = box.start, box.stop, box.shutdown
