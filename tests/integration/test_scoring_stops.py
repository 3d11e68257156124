"""Runs that end early, on a local Ray cluster: what is committed stays, what is not is due again, and the pilot."""

import signal
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RunStopped
from infra.storage import Storage
from ray_jobs import scoring
from ray_jobs.estimating import estimate_cost
from ray_jobs.run_record import read_records
from ray_jobs.score_config import plan_run, resolve_scorers
from ray_jobs.scoring import run_score
from ray_jobs.stages.sink import ScoreSink
from tests.integration.conftest import World
from tests.scoring import ids_in, small_config, write_catalog

pytestmark = pytest.mark.ray


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
        run_score(small_config(world, catalog, tables, commit_every_s=1e9), world.settings)
    assert stopped.value.exit_code == 128 + number
    kept = ids_in(tables)
    assert 0 < len(kept) < 40, "what had arrived is committed, the rest is not waited for"
    (record,) = read_records(str(tables), Storage())
    assert (record.state, record.outcome.done, record.message) == ("stopped", len(kept), f"stopped by {number.name}")
    assert not list((tables / "_runs").rglob("*.parquet")), "the due list is gone"
    monkeypatch.undo()
    result = run_score(small_config(world, catalog, tables), world.settings)
    assert result.plan.num_due == 40 - len(kept)
    assert sorted(ids_in(tables).values()) == [1] * 40


def test_the_pilot_writes_nothing_and_extrapolates(world: World, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path, world, num_missing=2, num_videos=10)
    run = small_config(world, catalog, tmp_path / "tables")
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
