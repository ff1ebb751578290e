"""How a game day mends what it broke: which broker node an operator restarts, and when a full queue has room again."""

from types import SimpleNamespace
from typing import Any

import pytest

from compose.gameday.cluster import Cluster
from compose.gameday.faults.queues import ROOM, have_room


@pytest.mark.parametrize(
    ("views", "restarted"),
    [
        ({"rabbit1": "123", "rabbit2": "123", "rabbit3": "123"}, []),
        # Paused, and still so after the healing: it answers nothing.
        ({"rabbit1": "12", "rabbit2": "12", "rabbit3": ""}, ["rabbit3"]),
        # Frozen for long: it thinks that it runs, and nobody else does.
        ({"rabbit1": "1", "rabbit2": "23", "rabbit3": "23"}, ["rabbit1"]),
        # Two that do not see each other, while the third sees both: either will do, but one of them.
        ({"rabbit1": "13", "rabbit2": "23", "rabbit3": "123"}, ["rabbit2"]),
        # Nobody agrees with anybody.
        ({"rabbit1": "1", "rabbit2": "", "rabbit3": "3"}, ["rabbit1", "rabbit2", "rabbit3"]),
    ],
)
def test_an_operator_restarts_the_fewest_nodes_that_keep_the_others_from_agreeing(
    monkeypatch: pytest.MonkeyPatch, views: dict[str, str], restarted: list[str]
) -> None:
    cluster = Cluster([], operator="", cookie="", program=SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(cluster, "running", lambda *, through: {f"rabbit{number}" for number in views[through]})

    assert cluster.apart() == restarted


def queue(name: str, limit: int | None, waiting: int) -> dict[str, Any]:
    definition = [] if limit is None else {"max-length": limit}
    return {"name": name, "messages_ready": waiting, "effective_policy_definition": definition}


def test_a_queue_has_room_by_its_limit_however_much_traffic_waits_in_it() -> None:
    other = queue("risk-0", None, 5)
    assert have_room([queue("posting-0", ROOM, 900), queue("posting-1", ROOM + 1, 0), other], "posting-")
    assert not have_room([queue("posting-0", ROOM, 0), queue("posting-1", 1, 0), other], "posting-")
    assert not have_room([queue("posting-0", None, 0)], "posting-")
    assert not have_room([], "posting-")
