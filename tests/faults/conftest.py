"""A sound stack for the tests in this folder that break things around it: two web processes, else as usual."""

from collections.abc import Iterator

import pytest

from compose import local
from tests.faults.bank import Bank

ROLES = {"web": 2, "relay": 1, "risk": 1, "posting": 1, "notifications": 1, "maintenance": 1}


@pytest.fixture(scope="package")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    with pytest.MonkeyPatch.context() as patch:
        # The servers are those of the test run; the mail folder is this stack's own.
        patch.delenv("EMAIL_URL", raising=False)
        with local.stack(name="sound", roles=ROLES, environment={"STUCK_SECONDS": "5"}) as stack:
            yield Bank(stack, tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="package")
def accounts(sound: Bank) -> list[str]:
    return sound.open_accounts(6)
