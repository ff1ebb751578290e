"""Declare exchanges and queues on the broker."""

from typing import Any

from django.core.management.base import BaseCommand

from bankcore.messaging.broker import declare_topology


class Command(BaseCommand):
    help = "Declare every exchange and queue on the broker (BROKER_URL). Harmless to repeat."

    def handle(self, **options: Any) -> None:
        names = declare_topology()
        self.stdout.write(f"declared {len(names)} queues: {', '.join(names)}")
