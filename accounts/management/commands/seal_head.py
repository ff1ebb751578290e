"""Print the newest head of every chain, to be kept where the database's owner cannot write."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from bankcore.messaging.seals import heads


class Command(BaseCommand):
    help = (
        "Print each chain's newest head, as chain:number:hex. Keep it on paper or on write-once storage: "
        "`prove_books --head FILE` says whether the chain it came from is still the one in the database."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *, json: bool, **options: Any) -> None:
        if json:
            self.stdout.write(_as_json())
            return
        found = heads()
        for chain, head in found.items():
            self.stdout.write(f"{chain}:{head.number}:{head.hex}")
        if not found:
            self.stderr.write("Nothing is sealed yet: the maintenance worker does it every few seconds.")


def _as_json() -> str:
    return json.dumps({chain: {"number": head.number, "head": head.hex} for chain, head in heads().items()})
