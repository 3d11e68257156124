"""Counting what a tables' root holds against what it should: lost, twice, wrong; and a reader that watches it grow."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.csv

from infra.storage import Storage
from infra.tables import DeltaStore
from ray_jobs.score_table import QUARANTINE, score_table

KEY = ("video_id", "etag", "policy", "scorer")


@dataclass
class Account:
    """Rows that are not as they should be; all zero is what is wanted."""

    num_rows: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0

    def __add__(self, other: "Account") -> "Account":
        return Account(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def account(tables: str, catalog: Path, digests: dict[str, str]) -> Account:
    """Hold the tables against the catalog (``video_id, uri, expected``: ``ok`` or a quarantine reason)."""
    storage = Storage()
    store = DeltaStore(tables, storage)
    videos = {row["video_id"]: row for row in pyarrow.csv.read_csv(catalog).to_pylist()}
    failed = _rows(store, QUARANTINE)
    total = Account()
    for task, digest in digests.items():
        rows = _rows(store, score_table(task))
        seen = Counter(row["video_id"] for row in rows) + Counter(row["video_id"] for row in failed)
        total.num_rows += len(rows) + len(failed)
        total.lost += len(videos.keys() - seen.keys())
        total.twice += sum(number - 1 for number in seen.values())
        for row in rows:
            video = videos.get(row["video_id"])
            total.wrong += (
                video is None
                or video["expected"] != "ok"
                or row["scorer"] != digest
                or row["etag"] != storage.stat(video["uri"]).etag
                or row["status"] != "scored"
            )
    total.wrong += sum(videos.get(row["video_id"], {}).get("expected") != row["reason"] for row in failed)
    return total


def _rows(store: DeltaStore, name: str) -> list[dict[str, object]]:
    dataset = store.dataset(name)
    if dataset is None:
        return []
    columns = [column for column in (*KEY, "status", "reason") if column in dataset.schema.names]
    rows: list[dict[str, object]] = dataset.to_table(columns=columns).to_pylist()
    return rows


@dataclass
class Watcher:
    """A reader that looks at the tables all the time, from another thread.

    Each commit must be there whole or not at all, a row must never vanish, and no row may stand there twice.
    """

    tables: str
    names: tuple[str, ...]
    num_looks: int = 0
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._seen: dict[str, Counter[tuple[str, object]]] = {name: Counter() for name in self.names}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last look and end."""
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self._look()

    def _look(self) -> None:
        store = DeltaStore(self.tables, Storage())
        for name in self.names:
            try:
                dataset = store.dataset(name)
                rows = [] if dataset is None else dataset.to_table(["video_id", "run_id", "committed_at"]).to_pylist()
            except Exception as error:
                self.violations.append(f"{name}: cannot be read: {type(error).__name__}: {error}")
                continue
            commits = Counter((row["run_id"], row["committed_at"]) for row in rows)
            for commit, number in self._seen[name].items():
                if commits[commit] != number:
                    self.violations.append(f"{name}: commit {commit} had {number} rows, now {commits[commit]}")
            if len({row["video_id"] for row in rows}) != len(rows):
                self.violations.append(f"{name}: a video stands there twice")
            self._seen[name] = commits
        self.num_looks += 1
