"""A long due list goes through the pipeline in parts: in order, one after the other, and ended wherever it stops."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray.data

from infra.storage import Storage
from ray_jobs import score_run
from ray_jobs.score_run import due_datasets, in_turn


def test_files_are_taken_in_the_order_in_which_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[str]] = []

    def read_parquet(paths: list[str], **_: Any) -> list[str]:
        read.append([Path(path).name for path in paths])
        return paths

    monkeypatch.setattr(ray.data, "read_parquet", read_parquet)
    monkeypatch.setattr(score_run, "FILES_PER_DATASET", 4)
    for number in range(11):
        (tmp_path / f"part-{number}.parquet").touch()
    datasets = due_datasets(str(tmp_path), Storage())
    assert next(iter(datasets))
    assert len(read) == 1, "a part is opened when the one before is done"
    assert list(datasets)
    assert [len(part) for part in read] == [4, 4, 3]
    assert [name for part in read for name in part] == [f"part-{number}.parquet" for number in range(11)]


def test_each_part_is_ended_before_the_next_begins_and_where_the_run_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Recorded:
        def __init__(self, ds: list[str]) -> None:
            self.ds = ds

        def __enter__(self) -> Iterator[str]:
            told.append("begin")
            return iter(self.ds)

        def __exit__(self, *_: object) -> None:
            told.append("end")

    monkeypatch.setattr(score_run, "Arrivals", Recorded)
    parts: Any = [["a", "b"], ["c", "d"], ["e"]]
    with closing(in_turn(parts)) as arrivals:
        for row in arrivals:
            told.append(str(row))
            if row == "c":
                break
    assert told == ["begin", "a", "b", "end", "begin", "c", "end"]
