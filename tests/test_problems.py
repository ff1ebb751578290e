"""Every refusal says what is so and what to do; none repeats its title for want of words."""

from collections.abc import Iterator

import pytest

from accounts import errors as accounts_errors  # noqa: F401
from bankcore import api, rate_limits  # noqa: F401
from bankcore.errors import BankError, Refused
from bankcore.messaging import errors as desk_errors  # noqa: F401
from bankcore.refusals import Refusal, broken_off, overloaded, too_large, too_slow
from transfers import errors as transfers_errors  # noqa: F401
from transfers import imports  # noqa: F401


def kinds(kind: type[BankError] = BankError) -> Iterator[type[BankError]]:
    for one in kind.__subclasses__():
        yield from (one, *kinds(one))


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind is not Refused])
def test_every_error_says_what_to_do(kind: type[BankError]) -> None:
    error = kind()

    assert "detail" in vars(kind), "it has no words of its own"
    assert error.detail not in (kind.title, BankError.detail)
    assert error.detail.endswith(".")
    assert not kind.title.endswith(".")
    assert kind("Said where it is raised.").detail == "Said where it is raised."


@pytest.mark.parametrize("refusal", [too_slow(), broken_off(), too_large(), overloaded(1)])
def test_every_refusal_before_django_says_what_to_do(refusal: Refusal) -> None:
    assert refusal.detail not in ("", refusal.title)
    assert refusal.detail.endswith(".")
