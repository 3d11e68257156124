"""Runs that end early, on a local Ray cluster: what is committed stays, what is not is due again, and the pilot."""

import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RunStopped
from infra.leases import Lease, LeaseHeld
from infra.storage import Storage
from infra.tables import DeltaStore, Fenced
from ray_jobs import scoring
from ray_jobs.estimating import estimate_cost
from ray_jobs.failure_guard import FailureLimits
from ray_jobs.run_record import read_records
from ray_jobs.score_config import ScoreConfig, plan_run, resolve_scorers
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.scoring import run_score
from ray_jobs.stages.sink import ScoreSink
from tests.integration.conftest import World

pytestmark = pytest.mark.ray


def write_catalog(folder: Path, world: World, *, num_missing: int, num_videos: int = 0) -> str:
    """Missing files first, then the same drawn face under many ids."""
    face = next((world.folder / "videos").glob("face-0001*"))
    lines = ["video_id,uri"]
    lines += [f"missing-{number},{folder}/nowhere-{number}.mp4" for number in range(num_missing)]
    lines += [f"face-{number},{face}" for number in range(num_videos)]
    path = folder / "catalog.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def config(world: World, catalog: str, tables: Path, **options: Any) -> ScoreConfig:
    scorers = {"fs2k": world.scorers["fs2k"]}
    return ScoreConfig(catalog=catalog, tables=str(tables), scorers=scorers, command="the command", **options)


def ids(tables: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in (score_table("fs2k"), QUARANTINE):
        dataset = DeltaStore(str(tables), Storage()).dataset(name)
        if dataset is not None:
            found.update(dataset.to_table(["video_id"])["video_id"].to_pylist())
    return found


def test_first_videos_that_all_fail_alike_stop_the_run_and_stay_due(world: World, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, world, num_missing=12)
    tables = tmp_path / "tables"
    options = config(world, catalog, tables, failures=FailureLimits(first=6), commit_every_rows=1, commit_every_s=0.1)
    with pytest.raises(RunStopped, match=r"all failed for one reason: not_found .*nowhere-.*the command") as stopped:
        run_score(options, world.settings)
    assert stopped.value.exit_code == 3
    assert not ids(tables)
    (record,) = read_records(str(tables), Storage())
    assert (record.state, record.outcome.done) == ("stopped", 0)
    result = run_score(config(world, catalog, tables), world.settings)  # fewer than the default limit: quarantined
    assert result.outcome is not None
    assert result.outcome.quarantined == {"not_found": 12}
    assert sorted(ids(tables).values()) == [1] * 12


def test_too_many_failures_stop_the_run_and_keep_what_is_committed(world: World, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, world, num_missing=16, num_videos=8)
    tables = tmp_path / "tables"
    limits = FailureLimits(max_rate=0.4, min_videos=10, first=0)
    with pytest.raises(RunStopped, match=r"more than --max-failure-rate 0\.4 allows"):
        run_score(config(world, catalog, tables, failures=limits), world.settings)
    kept = ids(tables)
    assert len(kept) >= 10
    run_score(config(world, catalog, tables, failures=FailureLimits(max_rate=1)), world.settings)
    assert sorted(ids(tables).values()) == [1] * 24
    assert kept.keys() <= ids(tables).keys()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_commit_and_the_way_on(
    world: World, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = write_catalog(tmp_path, world, num_missing=0, num_videos=40)
    tables = tmp_path / "tables"
    arrivals: list[Any] = []

    class Noted(ScoreSink):
        def add(self, rows: Any) -> None:
            super().add(rows)
            arrivals.append(rows)
            if len(arrivals) == 1:
                signal.raise_signal(number)

    monkeypatch.setattr(scoring, "ScoreSink", Noted)
    with pytest.raises(RunStopped, match=f"stopped by {number.name}.*go on with: the command") as stopped:
        run_score(config(world, catalog, tables, commit_every_s=1e9), world.settings)
    assert stopped.value.exit_code == 128 + number
    kept = ids(tables)
    assert 0 < len(kept) < 40, "what had arrived is committed, the rest is not waited for"
    (record,) = read_records(str(tables), Storage())
    assert (record.state, record.outcome.done, record.message) == ("stopped", len(kept), f"stopped by {number.name}")
    assert not list((tables / "_runs").rglob("*.parquet")), "the due list is gone"
    monkeypatch.undo()
    result = run_score(config(world, catalog, tables), world.settings)
    assert result.plan.num_due == 40 - len(kept)
    assert sorted(ids(tables).values()) == [1] * 40


def test_a_second_run_is_refused_before_it_starts(world: World, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, world, num_missing=0, num_videos=4)
    with Lease(Storage(), str(tmp_path / "tables"), "run 7"), pytest.raises(LeaseHeld, match="run 7"):
        run_score(config(world, catalog, tmp_path / "tables"), world.settings)
    assert not ids(tmp_path / "tables")


def test_a_run_that_was_overtaken_commits_nothing_more(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had slept through its lease, in the moment after its own check: the table itself refuses it."""
    catalog = write_catalog(tmp_path, world, num_missing=0, num_videos=8)
    tables = tmp_path / "tables"
    append = DeltaStore.append
    schema = scoring.score_schema("fs2k")

    def overtaken(self: DeltaStore, name: str, *arguments: Any, **options: Any) -> bool:
        self.with_epoch(self._epoch + 1).fence(name, schema)
        return append(self, name, *arguments, **options)

    monkeypatch.setattr(DeltaStore, "append", overtaken)
    with pytest.raises(Fenced):
        run_score(config(world, catalog, tables), world.settings)
    monkeypatch.undo()
    assert not ids(tables)
    result = run_score(config(world, catalog, tables), world.settings)
    assert result.outcome is not None
    assert result.outcome.scored == 8


def test_a_plan_that_was_overtaken_is_made_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = write_catalog(tmp_path, world, num_missing=0, num_videos=6)
    tables = tmp_path / "tables"
    late = config(world, catalog, tables)
    fit = scoring.fit

    def another_run_comes_first(*arguments: Any) -> Any:
        monkeypatch.undo()
        run_score(config(world, catalog, tables), world.settings)
        return fit(*arguments)

    monkeypatch.setattr(scoring, "fit", another_run_comes_first)
    result = run_score(late, world.settings)
    assert (result.plan.num_due, result.outcome) == (0, None)
    assert sorted(ids(tables).values()) == [1] * 6


def test_the_pilot_writes_nothing_and_extrapolates(world: World, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, world, num_missing=2, num_videos=10)
    run = config(world, catalog, tmp_path / "tables")
    resolved = resolve_scorers(run.scorers, world.settings)
    with plan_run(run, resolved, world.settings) as plan:
        cost = estimate_cost(plan, run, resolved, world.settings, num_videos=8, quiet=True)
    assert cost is not None
    assert (cost.num_pilot, cost.num_due) == (8, 12)
    assert 0 <= cost.num_failed <= 2
    size = Path(next((world.folder / "videos").glob("face-0001*"))).stat().st_size
    assert cost.read_bytes.value == pytest.approx(12 * size * (8 - cost.num_failed) / 8)
    assert cost.wall_s.low <= cost.wall_s.value <= cost.wall_s.high
    assert cost.cpu_hours.value > 0
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.csv"]


def test_content_by_digest(world: World, tmp_path: Path) -> None:
    import hashlib

    face = next((world.folder / "videos").glob("face-0001*"))
    data = face.read_bytes()
    (tmp_path / "a.mp4").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    catalog = tmp_path / "catalog.csv"
    catalog.write_text(f"video_id,uri,sha256\na,a.mp4,{digest}\nb,a.mp4,{'0' * 64}\n")
    tables = tmp_path / "tables"
    result = run_score(config(world, str(catalog), tables, content="sha256"), world.settings)
    assert result.outcome is not None
    assert (result.outcome.scored, result.outcome.quarantined) == (1, {"changed": 1})
    time.sleep(0.01)
    (tmp_path / "a.mp4").write_bytes(data)  # another etag, the same content
    again = config(world, str(catalog), tables, content="sha256")
    with plan_run(again, resolve_scorers(again.scorers, world.settings), world.settings) as plan:
        assert plan.counts["fs2k"]["done"] == plan.counts["fs2k"]["quarantined_retryable"] == 1
