"""What the proxy is told to be: its links and port mappers, put together while the stack's ports are given out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from compose.instance import REPOSITORY, Instance, write_private
from compose.supervision import SERVERS, Program


@dataclass
class ProxyPlan:
    """The proxy's configuration in the making."""

    control: int
    seed: int
    links: list[dict[str, Any]] = field(default_factory=list)
    mappers: list[dict[str, Any]] = field(default_factory=list)

    def add_link(self, name: str, listen: int, target: int) -> None:
        self.links.append({"name": name, "listen": listen, "target": target})

    @property
    def listen(self) -> dict[str, int]:
        """The port of each link by its name."""
        return {link["name"]: link["listen"] for link in self.links}

    def program(self, instance: Instance) -> Program:
        """Write the configuration, and say how the proxy is started."""
        file = instance.folder / "proxy.json"
        configuration = {"seed": self.seed, "control": self.control, "links": self.links, "mappers": self.mappers}
        write_private(file, json.dumps(configuration, indent=2) + "\n")
        return Program(
            name="proxy",
            arguments=[sys.executable, "-m", "compose.gameday.proxy", str(file)],
            directory=str(REPOSITORY),
            group=SERVERS,
            inherits=True,
            stop_seconds=2,
        )
