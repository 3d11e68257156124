"""What a run's driver does, without a cluster: plans, leases, commits, and why it stops; each video in one place."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RunStopped
from infra.leases import Lease, LeaseHeld
from infra.storage import Storage
from infra.tables import DeltaStore, Fenced
from ray_jobs import scoring
from ray_jobs.failure_guard import FailureLimits
from ray_jobs.run_record import read_records
from ray_jobs.score_config import plan_run, resolve_scorers
from ray_jobs.scoring import run_score
from ray_jobs.stages.sink import ScoreSink
from tests.integration.conftest import World
from tests.scoring import ids_in, scoring_here, small_config, write_catalog


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    with scoring_here():
        yield


def test_first_videos_that_all_fail_alike_stop_the_run_and_stay_due(drawn_world: World, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, drawn_world, num_missing=12)
    tables = tmp_path / "tables"
    options = small_config(
        drawn_world, catalog, tables, failures=FailureLimits(first=6), commit_every_rows=1, commit_every_s=0.1
    )
    with pytest.raises(RunStopped, match=r"all failed for one reason: not_found .*nowhere-.*the command") as stopped:
        run_score(options, drawn_world.settings)
    assert stopped.value.exit_code == 3
    assert not ids_in(tables)
    (record,) = read_records(str(tables), Storage())
    assert (record.state, record.outcome.done) == ("stopped", 0)
    # Fewer than the default limit: quarantined.
    result = run_score(small_config(drawn_world, catalog, tables), drawn_world.settings)
    assert result.outcome is not None
    assert result.outcome.quarantined == {"not_found": 12}
    assert sorted(ids_in(tables).values()) == [1] * 12


def test_a_crash_loses_only_what_was_not_committed(
    drawn_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crashing(ScoreSink):
        def tick(self) -> bool:
            has_committed = super().tick()
            if self.outcome.done >= 8:
                raise ConnectionAbortedError("as if the driver had died")
            return has_committed

    catalog = write_catalog(tmp_path, drawn_world, num_missing=2, num_videos=18)
    tables = tmp_path / "tables"
    monkeypatch.setattr(scoring, "ScoreSink", Crashing)
    with pytest.raises(ConnectionAbortedError):
        run_score(small_config(drawn_world, catalog, tables, commit_every_rows=4), drawn_world.settings)
    monkeypatch.undo()
    committed = ids_in(tables).total()
    assert 8 <= committed < 20
    result = run_score(small_config(drawn_world, catalog, tables), drawn_world.settings)
    assert result.plan.num_due == 20 - committed
    assert sorted(ids_in(tables).values()) == [1] * 20


def test_too_many_failures_stop_the_run_and_keep_what_is_committed(drawn_world: World, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, drawn_world, num_missing=16, num_videos=8)
    tables = tmp_path / "tables"
    limits = FailureLimits(max_rate=0.4, min_videos=10, first=0)
    with pytest.raises(RunStopped, match=r"more than --max-failure-rate 0\.4 allows"):
        run_score(small_config(drawn_world, catalog, tables, failures=limits), drawn_world.settings)
    kept = ids_in(tables)
    assert len(kept) >= 10
    run_score(small_config(drawn_world, catalog, tables, failures=FailureLimits(max_rate=1)), drawn_world.settings)
    assert sorted(ids_in(tables).values()) == [1] * 24
    assert kept.keys() <= ids_in(tables).keys()


def test_a_second_run_is_refused_before_it_starts(drawn_world: World, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, drawn_world, num_missing=0, num_videos=4)
    with Lease(Storage(), str(tmp_path / "tables"), "run 7"), pytest.raises(LeaseHeld, match="run 7"):
        run_score(small_config(drawn_world, catalog, tmp_path / "tables"), drawn_world.settings)
    assert not ids_in(tmp_path / "tables")


def test_a_run_that_was_overtaken_commits_nothing_more(
    drawn_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had slept through its lease, in the moment after its own check: the table itself refuses it."""
    catalog = write_catalog(tmp_path, drawn_world, num_missing=0, num_videos=8)
    tables = tmp_path / "tables"
    append = DeltaStore.append
    schema = scoring.score_schema("fs2k")

    def overtaken(self: DeltaStore, name: str, *arguments: Any, **options: Any) -> bool:
        self.with_epoch(self._epoch + 1).fence(name, schema)
        return append(self, name, *arguments, **options)

    monkeypatch.setattr(DeltaStore, "append", overtaken)
    with pytest.raises(Fenced):
        run_score(small_config(drawn_world, catalog, tables), drawn_world.settings)
    monkeypatch.undo()
    assert not ids_in(tables)
    result = run_score(small_config(drawn_world, catalog, tables), drawn_world.settings)
    assert result.outcome is not None
    assert result.outcome.scored == 8


def test_a_plan_that_was_overtaken_is_made_again(
    drawn_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = write_catalog(tmp_path, drawn_world, num_missing=0, num_videos=6)
    tables = tmp_path / "tables"
    late = small_config(drawn_world, catalog, tables)
    fit = scoring.fit

    def another_run_comes_first(*arguments: Any) -> Any:
        monkeypatch.undo()
        run_score(small_config(drawn_world, catalog, tables), drawn_world.settings)
        return fit(*arguments)

    monkeypatch.setattr(scoring, "fit", another_run_comes_first)
    result = run_score(late, drawn_world.settings)
    assert (result.plan.num_due, result.outcome) == (0, None)
    assert sorted(ids_in(tables).values()) == [1] * 6


def test_content_by_digest(drawn_world: World, tmp_path: Path) -> None:
    face = next((drawn_world.folder / "videos").glob("face-0001*"))
    data = face.read_bytes()
    (tmp_path / "a.mp4").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    catalog = tmp_path / "catalog.csv"
    catalog.write_text(f"video_id,uri,sha256\na,a.mp4,{digest}\nb,a.mp4,{'0' * 64}\n")
    tables = tmp_path / "tables"
    result = run_score(small_config(drawn_world, str(catalog), tables, content="sha256"), drawn_world.settings)
    assert result.outcome is not None
    assert (result.outcome.scored, result.outcome.quarantined) == (1, {"changed": 1})
    written = (tmp_path / "a.mp4").stat()
    os.utime(
        tmp_path / "a.mp4", ns=(written.st_atime_ns, written.st_mtime_ns + 10**9)
    )  # another etag, the same content
    again = small_config(drawn_world, str(catalog), tables, content="sha256")
    with plan_run(again, resolve_scorers(again.scorers, drawn_world.settings), drawn_world.settings) as plan:
        assert plan.counts["fs2k"]["done"] == plan.counts["fs2k"]["quarantined_retryable"] == 1
