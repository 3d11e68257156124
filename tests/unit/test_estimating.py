"""Extrapolating a pilot: sums, what sets the time, intervals that cover the truth."""

import numpy as np
import pyarrow as pa
import pytest

from ray_jobs.estimating import extrapolate
from ray_jobs.sizing import Resources


def pilot(extract_s: list[float], predict_s: list[float], fetched: list[int | None]) -> pa.Table:
    return pa.table(
        {
            "reason": ["corrupt" if bytes_ is None else None for bytes_ in fetched],
            "fetched_bytes": pa.array(fetched, pa.int64()),
            "extract_s": pa.array(extract_s, pa.float32()),
            "predict_s": pa.array(predict_s, pa.float32()),
        }
    )


def test_equal_videos_give_exact_sums_and_no_spread() -> None:
    cost = extrapolate(pilot([2.0] * 5, [0.5] * 5, [1000] * 5), 3600, 4, Resources())
    assert cost.wall_s.value == pytest.approx(3600 * 2 / 4)
    assert cost.read_bytes.value == 3_600_000
    assert cost.cpu_hours.value == pytest.approx(2.5)
    assert cost.gpu_hours.value == 0
    for figure in (cost.wall_s, cost.read_bytes, cost.cpu_hours):
        assert figure.low == pytest.approx(figure.value) == figure.high


def test_the_slower_side_sets_the_time_and_gpus_are_counted_apart() -> None:
    resources = Resources(num_predictors=2, gpus_per_predictor=0.5)
    cost = extrapolate(pilot([1.0] * 5, [3.0] * 5, [1000] * 5), 7200, 8, resources)
    assert cost.wall_s.value == pytest.approx(7200 * 3 / 2)
    assert cost.cpu_hours.value == pytest.approx(2.0)
    assert cost.gpu_hours.value == pytest.approx(7200 * 3 * 0.5 / 3600)


def test_failed_videos_cost_time_and_are_counted() -> None:
    cost = extrapolate(pilot([1.0, 9.0], [0.1, 0.0], [1000, None]), 10, 1, Resources())
    assert (cost.num_pilot, cost.num_failed) == (2, 1)
    assert cost.read_bytes.value == 5000
    assert cost.wall_s.value == pytest.approx(50)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    videos = rng.lognormal(0, 0.6, 20_000)
    covered = 0
    for _ in range(200):
        drawn = rng.choice(videos, 60, replace=False).tolist()
        cost = extrapolate(pilot(drawn, [0.0] * 60, [1] * 60), len(videos), 1, Resources())
        covered += cost.wall_s.low <= videos.sum() <= cost.wall_s.high
    assert 0.80 <= covered / 200 <= 0.97
