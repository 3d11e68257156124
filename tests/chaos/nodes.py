"""A Ray cluster of several nodes on this machine: nodes are lost without a word, and others join."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

# Before Ray is imported: loopback only.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

from ray.cluster_utils import Cluster

NUM_WORKERS = 3
# A node that is gone is missed after five looks: after five seconds here, by default after fifteen.
LOOKS = {"RAY_health_check_period_ms": "1000"}


class Nodes:
    """A head that runs no tasks, and nodes of one CPU each.

    What needs more nodes than are left stands still until another joins: so a test that gets to its end has used it.
    """

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False},
        )
        self.address = str(self._cluster.address)
        self.alive: list[Any] = []
        self.fill()

    def fill(self) -> None:
        """Add nodes until all are there."""
        while len(self.alive) < NUM_WORKERS:
            self.join()

    def join(self) -> Any:
        """A node joins."""
        node = self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        self.alive.append(node)
        return node

    def lose(self, node: Any) -> None:
        """A node goes with everything that runs on it."""
        self.alive.remove(node)
        processes = self._processes(node)
        self._cluster.remove_node(node, allow_graceful=False)
        for process in processes:
            if process.is_running():  # psutil knows a process from a later one of its number
                process.kill()

    def titles(self, node: Any) -> list[str]:
        """What runs on a node, as its processes call themselves: ``ray::Map…``, ``ray::ServeReplica:…``."""
        found = []
        for process in self._processes(node):
            try:
                found.append(" ".join(process.cmdline()))
            except psutil.NoSuchProcess:
                continue
        return found

    def with_title(self, words: str) -> list[Any]:
        """Nodes on which something runs whose title has these words."""
        return [node for node in self.alive if any(words in title for title in self.titles(node))]

    def close(self) -> None:
        """End everything."""
        self._cluster.shutdown()

    @staticmethod
    def _processes(node: Any) -> list[psutil.Process]:
        found = []
        for info in node.all_processes.get("raylet", []):
            try:
                found += psutil.Process(info.process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                continue
        return found


@contextmanager
def some_nodes(env: dict[str, str]) -> Iterator[Nodes]:
    """A cluster whose processes have these variables in their environment."""
    env = LOOKS | env
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        nodes = Nodes()
        try:
            yield nodes
        finally:
            nodes.close()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def until(condition: Callable[[], object], what: str, *, max_s: float = 900.0) -> None:
    """Wait for the condition."""
    end = time.monotonic() + max_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {max_s:.0f} s"
        time.sleep(0.05)
