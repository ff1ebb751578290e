"""Declare exchanges and queues on the broker."""

from typing import Any

from amqp.exceptions import AMQPError
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from kombu import Connection
from kombu.exceptions import OperationalError

from bankcore.messaging.broker import QueueDiffers, declare_topology


class Command(BaseCommand):
    help = "Declare every exchange and queue on the broker (BROKER_URL). Harmless to repeat."

    def handle(self, **options: Any) -> None:
        try:
            names = declare_topology()
        except QueueDiffers as error:
            raise CommandError(str(error)) from error
        except (OperationalError, AMQPError) as error:
            where = Connection(settings.BROKER_URL).as_uri()
            raise CommandError(f"The broker {where} does not answer, or turns us away: {error}") from error
        self.stdout.write(f"declared {len(names)} queues: {', '.join(names)}")
