"""Scoring on a local Ray cluster: every video once, in the right place, whatever breaks."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
import torch

from infra.errors import UserError
from infra.storage import Storage
from infra.tables import DeltaStore
from models.predictor import Predictor
from models.scorer import load_scorer, save_scorer
from ray_jobs import planning, score_run
from ray_jobs.cluster import look
from ray_jobs.score_config import ScoreConfig, plan_run, resolve_scorers
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.scoring import ScoreResult, run_score
from ray_jobs.sizing import Resources, Wanted
from ray_jobs.stages.extract import ExtractConfig, Extractor, unpack_crops
from tests.integration.conftest import FACE_POLICY, FRAME_POLICY, World
from tests.unit.scorers import small_network

pytestmark = pytest.mark.ray


def config(world: World, tables: Path, **options: Any) -> ScoreConfig:
    values: dict[str, Any] = {
        "catalog": str(world.drawn.catalog),
        "tables": str(tables),
        "scorers": world.scorers,
    }
    return ScoreConfig(**(values | options))


def rows(tables: Path, name: str) -> list[dict[str, Any]]:
    dataset = DeltaStore(str(tables), Storage()).dataset(name)
    return [] if dataset is None else dataset.to_table().to_pylist()


def ids(tables: Path, name: str) -> Counter[str]:
    return Counter(row["video_id"] for row in rows(tables, name))


@pytest.fixture(scope="module")
def scored(world: World) -> tuple[Path, ScoreResult]:
    tables = world.folder / "scored"
    return tables, run_score(config(world, tables), world.settings)


def test_every_video_of_the_plan_ends_in_exactly_one_place(scored: tuple[Path, ScoreResult]) -> None:
    tables, result = scored
    assert result.outcome is not None
    assert result.outcome.done == result.plan.num_due == 20  # 12 adults, 2 scenery, 6 broken; the minor is excluded
    quarantined = ids(tables, QUARANTINE)
    for task in ("attractiveness", "fs2k"):
        found = ids(tables, score_table(task))
        assert max((found + quarantined).values()) == 1, "twice"
        assert len(found) + len(quarantined) == 20, "lost"
        assert result.plan.counts[task]["minor"] == 1


def test_a_long_due_list_goes_through_several_datasets(
    world: World, scored: tuple[Path, ScoreResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files of at most five videos each to a dataset: the same rows as in one, none twice."""
    monkeypatch.setattr(planning, "DUE_ROWS_PER_FILE", 5)
    monkeypatch.setattr(score_run, "FILES_PER_DATASET", 2)
    begun: list[int] = []

    class Counted(score_run.Arrivals):
        def __init__(self, ds: ray.data.Dataset) -> None:
            begun.append(1)
            super().__init__(ds)

    monkeypatch.setattr(score_run, "Arrivals", Counted)
    result = run_score(config(world, tmp_path), world.settings)
    assert result.outcome is not None
    assert result.outcome.done == 20
    assert len(begun) == 2
    for name in (score_table("attractiveness"), score_table("fs2k"), QUARANTINE):
        assert ids(tmp_path, name) == ids(scored[0], name)


@pytest.mark.parametrize("num_cpus", [0, 2])
def test_a_run_takes_what_others_leave(
    world: World, tmp_path: Path, num_cpus: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two predictors by default on four CPUs; beside a service that keeps two of them, one, and a decoder."""

    @ray.remote(num_cpus=num_cpus)
    class Service:
        def answer(self) -> str:
            return "here"

    service = Service.remote()
    try:
        assert ray.get(service.answer.remote()) == "here"
        while look().unused.num_cpus_now < 4 - num_cpus:  # the predictors of an earlier test may not have gone yet
            time.sleep(0.1)
        result = run_score(config(world, tmp_path, resources=Wanted()), world.settings)
    finally:
        ray.kill(service)
    assert result.outcome is not None
    assert result.outcome.done == 20
    told = capsys.readouterr().out
    if num_cpus:
        assert "pools: 1 decoders at a time (0.9 CPU each), 1 predictors" in told
        assert "others hold 2 of 4 CPUs" in told
    else:
        assert "2 predictors" in told
        assert "others hold" not in told


def test_a_broken_video_costs_its_row_and_says_why(scored: tuple[Path, ScoreResult]) -> None:
    reasons = {row["video_id"].split("-")[0]: row["reason"] for row in rows(scored[0], QUARANTINE)}
    assert {name: reasons.get(name) for name in ("truncated", "zeroed", "text", "empty", "sound", "missing")} == {
        "truncated": "truncated",
        "zeroed": "corrupt",
        "text": "not_media",
        "empty": "not_media",
        "sound": "no_video_stream",
        "missing": "not_found",
    }
    for row in rows(scored[0], QUARANTINE):
        assert row["video_id"] in row["message"], "the message names the file"


def test_faces_are_scored_and_scenery_is_not(scored: tuple[Path, ScoreResult]) -> None:
    for row in rows(scored[0], score_table("attractiveness")):
        if row["video_id"].startswith("scenery"):
            assert (row["status"], row["score"], row["num_faces"]) == ("no_face", None, 0)
        elif row["video_id"].startswith("face"):
            assert row["status"] == "scored"
            assert 60 <= row["score"] <= 99
            assert row["num_faces"] == len(row["faces"]) > 0
            assert [face["frame_index"] for face in row["faces"]] == [0, 20, 40][: row["num_faces"]]


def test_the_table_holds_what_the_predictor_says_of_the_same_bytes(
    world: World, scored: tuple[Path, ScoreResult]
) -> None:
    torch.set_num_threads(1)  # as in the job: detection is exact only up to the order of its sums
    predictor = Predictor(load_scorer(Path(world.scorers["attractiveness"])), device="cpu")
    extractor = Extractor(
        ExtractConfig(frame_policy=FRAME_POLICY, face_policy=FACE_POLICY, storage=world.settings.storage)
    )
    checked = 0
    for row in rows(scored[0], score_table("attractiveness"))[:6]:
        if row["status"] == "scored":
            crops = unpack_crops(extractor.extract(row["uri"], None)["crops"], FACE_POLICY.crop_size)
            (prediction,) = predictor.predict([crops])
            assert prediction.columns is not None
            np.testing.assert_allclose(row["score"], prediction.columns["score"], atol=1e-3)
            checked += 1
    assert checked


def test_a_second_run_finds_nothing_to_do(world: World, scored: tuple[Path, ScoreResult]) -> None:
    before = {name: ids(scored[0], name) for name in (score_table("fs2k"), QUARANTINE)}
    again = run_score(config(world, scored[0]), world.settings)
    assert (again.plan.num_due, again.outcome) == (0, None)
    assert {name: ids(scored[0], name) for name in before} == before


def test_a_new_scorer_makes_its_rows_stale_and_no_others(world: World, scored: tuple[Path, ScoreResult]) -> None:
    tables, _ = scored
    old = load_scorer(Path(world.scorers["fs2k"]))
    save_scorer(world.folder / "fs2k-new", small_network("fs2k", seed=1), old.manifest)
    changed = config(world, tables, scorers=world.scorers | {"fs2k": str(world.folder / "fs2k-new")})
    plan = plan_run(changed, resolve_scorers(changed.scorers, world.settings), world.settings)
    num_rows = len(rows(tables, score_table("fs2k")))
    assert plan.counts["fs2k"]["stale_scorer"] == plan.num_due == num_rows
    assert plan.counts["attractiveness"]["done"] == num_rows


def test_a_dry_run_writes_nothing(world: World, tmp_path: Path) -> None:
    dry = config(world, tmp_path / "tables")
    plan = plan_run(dry, resolve_scorers(dry.scorers, world.settings), world.settings)
    assert plan.num_due == 20
    assert not (tmp_path / "tables").exists()


def test_too_many_predictors_are_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    greedy = config(world, tmp_path / "tables", resources=Resources(num_predictors=3))
    with pytest.raises(UserError, match=r"--predictors \d+ needs \d+ logical CPUs"):
        run_score(greedy, world.settings)
    assert not (tmp_path / "tables").exists()
