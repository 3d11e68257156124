"""A history of misfortunes on a local cluster of several nodes, scripted by a seed, and what stands in the tables then.

python -m tests.chaos.history --kills 50 --seed 1
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Before Ray is imported: loopback only, and a node that is gone is missed after five seconds, by default after fifteen.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_health_check_period_ms", "1000")

from ray.cluster_utils import Cluster

from infra.leases import LeaseHeld, current_lease, refuse_if_held
from infra.storage import Storage
from ray_jobs.score_table import QUARANTINE, score_table
from tests.chaos.account import Account, Watcher, account
from tests.chaos.world import make_catalog, make_images, make_scorers

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("attractiveness", "fs2k")
ROWS_PER_BLOCK = 4
COMMIT_ROWS = 16
COMMIT_S = 3.0
TTL_S = 6.0
MAX_WAIT_S = 240.0
# How often each misfortune comes, of those that count as kills.
WEIGHTS = {
    "driver": 10,
    "worker": 7,
    "decoder": 3,
    "raylet": 3,
    "second driver": 2,
    "two drivers at once": 1,
    "sleeping driver": 1,
    "full disk": 1,
    "read-only disk": 1,
}
DISK_BYTES = 64 << 20  # of the tables' own file system, where one can be mounted


@dataclass
class Report:
    """What happened, and the account of it."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    num_rounds: int = 0
    account: Account = field(default_factory=Account)
    num_looks: int = 0
    violations: list[str] = field(default_factory=list)
    rework: list[int] = field(default_factory=list)  # rows that had arrived uncommitted, at each driver's end
    overdue: list[int] = field(default_factory=list)  # of these, the rows that were there before the last arrival
    wall_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Nothing lost, nothing twice, nothing wrong, no partial commit seen, no more rework than allowed."""
        bad = self.account.lost + self.account.twice + self.account.wrong
        return not bad and not self.violations and max(self.overdue, default=0) < COMMIT_ROWS

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.kills.most_common())
        rework = f"mean {np.mean(self.rework):.1f}, most {max(self.rework)}" if self.rework else "none"
        return (
            f"seed {self.seed}: {self.kills.total()} kills ({kinds}) in {self.num_rounds} rounds, {self.wall_s:.0f} s\n"
            f"  rows {self.account.num_rows}: lost {self.account.lost}, twice {self.account.twice}, "
            f"wrong {self.account.wrong}\n"
            f"  reader: {self.num_looks} looks, {len(self.violations)} violations {self.violations[:3] or ''}\n"
            f"  rework of a killed driver: {rework} rows (a commit is due at {COMMIT_ROWS}; of them at most "
            f"{max(self.overdue, default=0)} were there before the last arrival)"
        )


class History:
    """Runs drivers on a cluster and makes things go wrong."""

    def __init__(self, folder: Path, seed: int, *, num_videos: int = 240) -> None:
        self.folder = folder
        self.report = Report(seed)
        self._rng = random.Random(seed)
        self._num_videos = num_videos
        self._drivers: list[subprocess.Popen[bytes]] = []
        self._has_disk = False
        self._scorers, self._digests = make_scorers(folder, TASKS)
        self._images = make_images(folder)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": 150 << 20, "include_dashboard": False},
        )
        self._nodes = [self._add_node(), self._add_node()]

    def close(self) -> None:
        """End drivers and cluster."""
        for driver in self._drivers:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
        self._cluster.shutdown()
        if self._has_disk:
            subprocess.run(["umount", "-l", self._tables], check=False, capture_output=True)

    def run(self, kinds: list[str] | None = None, *, num_kills: int = 0) -> Report:
        """Play the given kills in order, or ``num_kills`` drawn ones, over as many rounds as it takes; then count."""
        start = time.monotonic()
        if kinds is None:
            kinds = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=num_kills)
        left = list(kinds)
        while left:
            self._round(left)
        self.report.wall_s = time.monotonic() - start
        return self.report

    def _round(self, left: list[str]) -> None:
        """One catalog into fresh tables: drivers follow each other until one of them gets to the end."""
        self.report.num_rounds += 1
        self._place = self.folder / f"round-{self.report.num_rounds}"
        self._catalog = make_catalog(self._place, self._images, self._num_videos)
        self._tables = str(self._place / "tables")
        self._mount()
        if not self._has_disk:
            left[:] = [kind for kind in left if "disk" not in kind]
        watcher = Watcher(self._tables, (*map(score_table, TASKS), QUARANTINE))
        for _ in range(100):
            driver = self._start_driver()
            while left and driver.poll() is None:
                print(f"round {self.report.num_rounds}, {len(left)} left: {left[0]}", flush=True)
                driver, has_happened = getattr(self, "_" + left[0].replace(" ", "_").replace("-", "_"))(driver)
                if not has_happened:
                    break  # the driver was done before
                self.report.kills[left.pop(0)] += 1
            if self._wait(driver) == 0:
                break
        else:
            raise RuntimeError(f"no driver gets to the end; see {self._place}")
        watcher.stop()
        self.report.num_looks += watcher.num_looks
        self.report.violations += watcher.violations
        self.report.account += account(self._tables, self._catalog, self._digests)
        if self._has_disk:
            subprocess.run(["umount", "-l", self._tables], check=True)

    # The misfortunes: each takes the driver at work and returns the one at work afterwards, and whether it happened.

    def _driver(self, driver: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], bool]:
        """SIGKILL, at any moment from the start on, or in the middle of a commit."""
        moment = self._rng.choice(["any", "arrive", "commit", "commit"])
        if moment == "any":
            self._until(driver, lambda: False, max_s=self._rng.uniform(1, 25))
        else:
            number = self._rng.randint(1, 5)
            self._until(driver, lambda: self._num_lines(driver, moment) >= number)
            time.sleep(self._rng.uniform(0, 0.04))
        if driver.poll() is not None:
            return driver, False
        driver.kill()
        driver.wait()
        self._count_rework(driver)
        return driver, True

    def _worker(self, driver: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], bool]:
        """SIGKILL to a process that decodes or predicts."""
        self._until(driver, lambda: self._num_lines(driver, "arrive") >= 1)
        self._until(driver, lambda: False, max_s=self._rng.uniform(0, 3))
        return driver, self._kill_one(driver, self._worker_pids())

    def _decoder(self, driver: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], bool]:
        """SIGKILL to a decoding child alone, at work if one can be found so: its video is tried again."""
        self._until(driver, lambda: self._num_lines(driver, "arrive") >= 1)
        self._until(driver, lambda: bool(self._decoder_pids(busy=True)), max_s=5)
        return driver, self._kill_one(driver, self._decoder_pids(busy=True) or self._decoder_pids(busy=False))

    def _kill_one(self, driver: subprocess.Popen[bytes], pids: list[int]) -> bool:
        if driver.poll() is not None or not pids:
            return False
        try:
            os.kill(self._rng.choice(pids), signal.SIGKILL)
        except ProcessLookupError:  # it has ended by itself
            return False
        return True

    def _raylet(self, driver: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], bool]:
        """A node goes without a word; another one comes."""
        self._until(driver, lambda: self._num_lines(driver, "arrive") >= 1)
        if driver.poll() is not None:
            return driver, False
        node = self._nodes.pop(self._rng.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add_node())
        return driver, True

    def _second_driver(self, driver: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], bool]:
        """Another run looks at the same tables while this one is at work, as `score` does first: refused."""
        self._until(driver, lambda: self._num_lines(driver, "arrive") >= 1)
        driver.send_signal(signal.SIGSTOP)  # so that it cannot finish before the other one has looked
        found = current_lease(Storage(), self._tables)
        is_at_work = found is not None and found[1].pid == driver.pid and not found[1].released
        try:
            refuse_if_held(Storage(), self._tables)
        except LeaseHeld:
            pass
        else:
            if is_at_work:
                self.report.violations.append("a second driver was not refused")
        driver.send_signal(signal.SIGCONT)
        return driver, is_at_work

    def _two_drivers_at_once(self, driver: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], bool]:
        """The driver is killed and two are started in its place: one of them gives way."""
        driver.kill()
        driver.wait()
        self._count_rework(driver)
        first, second = self._start_driver(), self._start_driver()
        self._until(first, lambda: second.poll() is not None)
        ended, other = (first, second) if first.poll() is not None else (second, first)
        if ended.poll() is None:
            self.report.violations.append("two drivers work at the same time")
            ended.kill()
        elif ended.returncode not in (0, 2):
            self.report.violations.append(f"of two drivers one ended with {ended.returncode}")
        return other, True

    def _sleeping_driver(self, driver: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], bool]:
        """A driver is stopped for longer than its lease lasts, another one takes over, the first wakes up."""
        self._until(driver, lambda: self._num_lines(driver, "arrive") >= 2)
        if driver.poll() is not None:
            return driver, False
        driver.send_signal(signal.SIGSTOP)
        time.sleep(TTL_S + 2)
        second = self._start_driver()
        # Not until rows arrive: the sleeping one's tasks still hold the cluster's CPUs.
        self._until(second, lambda: self._holder() == second.pid)
        self._until(second, lambda: False, max_s=self._rng.uniform(0, 3))
        driver.send_signal(signal.SIGCONT)
        code = self._wait(driver)
        if code == 0 and self._num_lines(second, "committed"):
            self.report.violations.append("a driver that slept through its lease ended as if nothing were")
        self._count_rework(driver)
        return second, True

    def _full_disk(self, driver: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], bool]:
        """Nothing more fits on the tables' disk until the driver has given up."""
        filler = Path(self._tables) / "filler"

        def fill() -> None:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))

        return self._with_disk_trouble(driver, fill, filler.unlink)

    def _read_only_disk(self, driver: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], bool]:
        """The tables' disk turns read-only until the driver has given up."""

        def remount(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", self._tables], check=True)

        return self._with_disk_trouble(driver, lambda: remount("ro"), lambda: remount("rw"))

    def _with_disk_trouble(
        self, driver: subprocess.Popen[bytes], begin: Callable[[], None], end: Callable[[], None]
    ) -> tuple[subprocess.Popen[bytes], bool]:
        self._until(driver, lambda: self._num_lines(driver, "arrive") >= 1)
        if driver.poll() is not None:
            return driver, False
        driver.send_signal(signal.SIGSTOP)  # so that it cannot finish before the trouble has begun
        has_more = account(self._tables, self._catalog, self._digests).lost > 0
        if has_more:
            begin()
        driver.send_signal(signal.SIGCONT)
        if not has_more:
            return driver, False
        code = self._wait(driver)
        end()
        if code != 2:
            self.report.violations.append(f"a driver without a disk to write to ended with {code}")
        return driver, True

    def _mount(self) -> None:
        """Give the tables a file system of their own, where that is permitted."""
        Path(self._tables).mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "facereel-chaos", self._tables]
        self._has_disk = subprocess.run(command, check=False, capture_output=True).returncode == 0

    def _start_driver(self) -> subprocess.Popen[bytes]:
        number = len(self._drivers)
        options = {
            "catalog": str(self._catalog),
            "tables": self._tables,
            "scorers": self._scorers,
            "journal": str(self._place / f"driver-{number}.jsonl"),
            "rows_per_block": ROWS_PER_BLOCK,
            "commit_every_rows": COMMIT_ROWS,
            "commit_every_s": COMMIT_S,
            "lease_ttl_s": TTL_S,
            "tracking": {"uri": f"sqlite:///{self.folder}/mlflow.db"},
            "address": self._cluster.address,
        }
        path = self._place / f"driver-{number}.json"
        path.write_text(json.dumps(options))
        Path(str(options["journal"])).touch()
        with (self._place / f"driver-{number}.log").open("wb") as log:
            command = [sys.executable, "-m", "tests.chaos.driver", str(path)]
            driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        self._drivers.append(driver)
        return driver

    def _journal(self, driver: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        path = self._place / f"driver-{self._drivers.index(driver)}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _num_lines(self, driver: subprocess.Popen[bytes], kind: str) -> int:
        return sum(line["kind"] == kind for line in self._journal(driver))

    def _holder(self) -> int | None:
        """The process that holds the tables' lease."""
        found = current_lease(Storage(), self._tables)
        return None if found is None else found[1].pid

    def _count_rework(self, driver: subprocess.Popen[bytes]) -> None:
        """What an ended driver had received and not committed."""
        journal = self._journal(driver)
        pending = journal[-1]["pending"] if journal else 0
        last = next((line["arrived"] for line in reversed(journal) if line["kind"] == "arrive"), 0)
        self.report.rework.append(pending)
        self.report.overdue.append(max(0, pending - last))

    def _until(
        self, driver: subprocess.Popen[bytes], condition: Callable[[], bool], *, max_s: float = MAX_WAIT_S
    ) -> None:
        """Wait until the condition holds, the driver has ended, or the time is over."""
        end = time.monotonic() + max_s
        while driver.poll() is None and not condition() and time.monotonic() < end:
            time.sleep(0.01)

    def _wait(self, driver: subprocess.Popen[bytes]) -> int:
        return driver.wait(timeout=2 * MAX_WAIT_S)

    def _worker_pids(self) -> list[int]:
        """Processes of this cluster that run a stage at this moment, by their title."""
        return self._ray_pids("ray::Map")

    def _decoder_pids(self, *, busy: bool) -> list[int]:
        """Decoding children of workers that extract at this moment, or of any."""
        workers = set(self._ray_pids("ray::MapBatches(extract)" if busy else "ray::"))
        return [pid for pid, parent, title in _processes() if parent in workers and "models.video.child" in title]

    def _ray_pids(self, title_start: str) -> list[int]:
        """Children of this cluster's raylets whose title begins so."""
        raylets = {
            info.process.pid
            for node in self._cluster.list_all_nodes()
            for infos in node.all_processes.values()
            for info in infos
        }
        return [pid for pid, parent, title in _processes() if parent in raylets and title.startswith(title_start)]

    def _add_node(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20)


def _processes() -> list[tuple[int, int, str]]:
    """(pid, parent's pid, command line) of the machine's processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found.append((int(entry.name), parent, (entry / "cmdline").read_text()))
            except (OSError, ValueError):
                continue  # it has ended meanwhile
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--videos", type=int, default=240, help="of each round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="facereel-chaos-") as folder:
        history = History(Path(folder), options.seed, num_videos=options.videos)
        try:
            report = history.run(num_kills=options.kills)
        finally:
            history.close()
    print(report)
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
