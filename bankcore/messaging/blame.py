"""Who is to blame when a stage takes more along than it was asked for: never the one that was asked for alone."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from bankcore.messaging.pause import is_infrastructure


class TakenAlongFailed(Exception):
    """Work failed together with `ids`, of which some came along unasked: they are to be tried by themselves, first."""

    def __init__(self, ids: Collection[Any]) -> None:
        super().__init__(f"{len(ids)} ids failed together")
        self.ids = [str(one) for one in ids]


@contextmanager
def blame(lot: Collection[Any], asked: Collection[Any]) -> Iterator[None]:
    """Name the whole lot as what failed, if there is more in it than was asked for.

    Raises:
        TakenAlongFailed: from the error of the lot; an outage comes through as it is, since nobody is to blame for it.
    """
    try:
        yield
    except Exception as error:
        if is_infrastructure(error) or set(lot) <= set(asked):
            raise
        raise TakenAlongFailed(lot) from error
