"""Drift: what lies apart is named, what is alike is not, and windows hold only what belongs to them."""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import UserError
from infra.storage import Storage
from infra.tables import DeltaStore
from ray_jobs.drifting import Drift, DriftConfig, DriftLimits, measure_drift, read_limits
from ray_jobs.reports.drift import drift_page
from ray_jobs.score_table import QUARANTINE
from ray_jobs.shift import class_shift, numeric_shift, population_stability
from ray_jobs.stages.sink import QUARANTINE_SCHEMA, score_schema

UNTIL = datetime(2026, 6, 30, tzinfo=UTC)
RECENT, BEFORE = UNTIL - timedelta(days=3), UNTIL - timedelta(days=20)
_ids = itertools.count()


def test_population_stability_is_siddiqis() -> None:
    # Credit Risk Scorecards: shares of two classes, 50/50 then 80/20: 0.3 ln 1.6 + (-0.3) ln 0.4
    assert population_stability(np.array([0.5, 0.5]), np.array([0.8, 0.2])) == pytest.approx(0.41589, abs=1e-5)
    assert population_stability(np.array([0.3, 0.7]), np.array([0.3, 0.7])) == 0
    assert np.isfinite(population_stability(np.array([1.0, 0.0]), np.array([0.0, 1.0])))


def test_shifts_of_numbers_and_classes() -> None:
    rng = np.random.default_rng(0)
    alike = numeric_shift("score", rng.normal(80, 5, 2000), rng.normal(80, 5, 2000))
    apart = numeric_shift("score", rng.normal(80, 5, 2000), rng.normal(88, 5, 2000))
    assert alike.psi < 0.05
    assert alike.ks is not None
    assert alike.ks < 0.05
    assert apart.psi > 0.5
    # Two normals 1.6 deviations apart: the largest distance of their distribution functions is 2Φ(0.8) - 1.
    assert apart.ks == pytest.approx(0.576, abs=0.04)
    assert sum(apart.shares_now) == pytest.approx(1)
    assert numeric_shift("score", np.full(50, 70.0), np.full(50, 70.0)).psi == 0
    classes = class_shift("smile", (False, True), [True] * 50 + [False] * 50, [True] * 80 + [False] * 20)
    assert classes.psi == pytest.approx(0.41589, abs=1e-5)
    assert classes.shares_now == (0.2, 0.8)


def scored(folder: Path, at: datetime, scores: list[float | None], *, scorer: str = "v2", sharpness: float = 5) -> None:
    """Rows of the attractiveness table; a null score is a video without a face."""
    schema = score_schema("attractiveness")
    rows: list[dict[str, Any]] = [
        {
            "video_id": f"v{next(_ids)}",
            "scorer": scorer,
            "scorer_version": f"models:/facereel-attractiveness/{scorer}",
            "policy": "policy",
            "status": "no_face" if score is None else "scored",
            "score": score,
            "num_faces": 0 if score is None else 2,
            "faces": [] if score is None else [{"sharpness": sharpness - 1}, {"sharpness": sharpness + 1}],
            "committed_at": at,
        }
        for score in scores
    ]
    store = DeltaStore(str(folder), Storage())
    store.append(
        "scores_attractiveness", pa.Table.from_pylist(rows, schema=schema), run_id=f"run-{next(_ids)}", sequence=1
    )


def quarantined(folder: Path, at: datetime, reasons: list[str], policy: str = "policy") -> None:
    rows = [
        {"video_id": f"q{next(_ids)}", "policy": policy, "reason": reason, "committed_at": at} for reason in reasons
    ]
    table = pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)
    DeltaStore(str(folder), Storage()).append(QUARANTINE, table, run_id=f"run-{next(_ids)}", sequence=1)


def drift(folder: Path, **limits: float) -> Drift:
    config = DriftConfig(
        str(folder), "attractiveness", until=UNTIL, limits=DriftLimits(min_videos=100).model_copy(update=limits)
    )
    return measure_drift(config, Storage())


def normal(mean: float, num: int, seed: int) -> list[float | None]:
    return [float(value) for value in np.random.default_rng(seed).normal(mean, 5, num)]


def test_what_is_alike_is_no_drift(tmp_path: Path) -> None:
    scored(tmp_path, BEFORE, normal(80, 600, 0) + [None] * 30)
    scored(tmp_path, RECENT, normal(80, 400, 1) + [None] * 22)
    quarantined(tmp_path, BEFORE, ["truncated"] * 6)
    quarantined(tmp_path, RECENT, ["truncated"] * 4)
    # None of these belong to the comparison: too old, too new, another scorer, another policy.
    scored(tmp_path, UNTIL - timedelta(days=90), normal(65, 500, 2))
    scored(tmp_path, UNTIL + timedelta(days=1), normal(65, 500, 2))
    scored(tmp_path, BEFORE, [*normal(65, 475, 3), *[None] * 25], scorer="v1")
    quarantined(tmp_path, RECENT, ["not_found"] * 500, policy="another")
    found = drift(tmp_path)
    assert found.found == ()
    assert (found.reference.num_videos, found.recent.num_videos) == (630, 422)
    assert found.not_compared == ("brightness", "confidence", "size_px")
    assert found.scorer_version.endswith("/v2")
    assert {rate.name for rate in found.rates} == {"no_face", "quarantined", "quarantined: truncated"}
    assert "Everything is within its limit" in drift_page(found)


def test_each_kind_of_drift_is_named(tmp_path: Path) -> None:
    scored(tmp_path, BEFORE, normal(80, 600, 0))
    scored(tmp_path, RECENT, normal(88, 300, 1) + [None] * 60, sharpness=1)
    quarantined(tmp_path, RECENT, ["truncated"] * 40)
    found = drift(tmp_path)
    said = "\n".join(found.found)
    assert "no_face: 0.0% of the videos, then 15.0%" in said
    assert "quarantined: truncated: 0.0% of the videos, then 10.0%" in said
    assert "score: population stability index" in said
    assert "score: Kolmogorov-Smirnov distance" in said
    assert "sharpness: Kolmogorov-Smirnov distance 1.000" in said
    assert "num_faces" not in said
    sharpness = next(shift for shift in found.quality if shift.name == "sharpness")
    assert (sharpness.before, sharpness.now) == (5, 1)
    page = drift_page(found)
    assert all(item.split(":")[0] in page for item in found.found)
    assert drift(tmp_path, max_psi=99, max_ks=1, max_rate_change=1).found == ()


def test_a_promotion_is_no_drift_of_what_can_be_read(tmp_path: Path) -> None:
    week = [UNTIL - timedelta(days=days) for days in range(28, 8, -1)]
    for day in week:
        scored(tmp_path, day, normal(80, 95, day.day), scorer="v1")
        quarantined(tmp_path, day, ["truncated"] * 5)
    scored(tmp_path, UNTIL - timedelta(days=8), normal(80, 190, 1))
    scored(tmp_path, RECENT, normal(80, 190, 2))
    quarantined(tmp_path, UNTIL - timedelta(days=8), ["truncated"] * 10)
    quarantined(tmp_path, RECENT, ["truncated"] * 10)
    found = drift(tmp_path)
    assert found.found == ()
    assert found.reference.num_videos == 190
    rate = next(rate for rate in found.rates if rate.name == "quarantined")
    assert (rate.before, rate.now) == (pytest.approx(0.05), pytest.approx(0.05))


def test_quarantined_videos_make_no_window_large_enough(tmp_path: Path) -> None:
    for moment in (BEFORE, RECENT):
        scored(tmp_path, moment, normal(80, 3, 0))
        quarantined(tmp_path, moment, ["truncated"] * 300)
    with pytest.raises(UserError, match=r"the reference window .* has 3 videos"):
        drift(tmp_path)


def test_too_few_rows_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no table scores_attractiveness"):
        drift(tmp_path)
    scored(tmp_path, BEFORE, normal(80, 600, 0))
    with pytest.raises(UserError, match=r"the recent window .* has 0 videos .* fewer than min_videos 100"):
        drift(tmp_path)
    with pytest.raises(UserError, match="has no rows between"):
        measure_drift(DriftConfig(str(tmp_path), "attractiveness"), Storage())


def test_limits_name_the_wrong_field(tmp_path: Path) -> None:
    (tmp_path / "drift.yaml").write_text("max_ks: 3\n")
    with pytest.raises(UserError, match="max_ks: Input should be less than or equal to 1"):
        read_limits(str(tmp_path / "drift.yaml"))
    (tmp_path / "drift.yaml").write_text("min_videos: 50\n")
    assert read_limits(str(tmp_path / "drift.yaml")).min_videos == 50
    assert read_limits(None) == DriftLimits()
