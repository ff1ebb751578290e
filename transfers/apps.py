from django.apps import AppConfig

from bankcore.messaging import backpressure
from transfers.backlog import Backlog


class TransfersConfig(AppConfig):
    name = "transfers"
    verbose_name = "Transfers"

    def ready(self) -> None:
        backpressure.watch(Backlog().read)
