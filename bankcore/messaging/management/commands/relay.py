"""Carry committed events to the broker."""

import signal
import threading
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from bankcore import metrics
from bankcore.garbage import collect_rarely
from bankcore.messaging import envelope
from bankcore.messaging.relay import Relay


class Command(BaseCommand):
    help = "Carry committed events to the broker. Start two: one is active, the other takes over. Ctrl-C stops cleanly."

    def handle(self, **options: Any) -> None:
        if not settings.MESSAGE_KEY_IS_SHARED:
            raise CommandError(envelope.NO_SHARED_KEY)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        metrics.serve()
        collect_rarely()
        Relay(stop).run()
