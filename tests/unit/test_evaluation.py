"""Figures with intervals, slices, calibration and coverage, against answers whose worth is known."""

import numpy as np
import pytest

from infra.errors import UserError
from models.evaluation import evaluate, resample
from models.tasks.base import MISSING, get_task


def _one_hot(index: np.ndarray, num_classes: int, sure: float) -> np.ndarray:
    p = np.full((len(index), num_classes), (1 - sure) / (num_classes - 1), dtype=np.float32)
    p[np.arange(len(index)), index] = sure
    return p


def _scored(num: int = 400, per_creator: int = 4, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Answers off by a creator's own 0 to 6 points, and the truth."""
    rng = np.random.default_rng(seed)
    creators = np.arange(num) // per_creator
    truth = rng.integers(6, 34, num)
    off = rng.integers(-6, 7, creators.max() + 1)[creators]
    return {"score": _one_hot(truth + off, 40, 0.999)}, truth[:, None], [f"c{creator}" for creator in creators]


def _evaluated(**changed: object):
    task = get_task("attractiveness")
    probabilities, targets, groups = _scored()
    arguments = {
        "videos": [f"v{i // 2}" for i in range(len(targets))],
        "groups": groups,
        "baseline": task.baseline(targets),
        "half_widths": {"score": (4.0, 0.7)},
        "columns": {"side": ["left" if int(group[1:]) % 2 else "right" for group in groups]},
        "num_resamples": 50,
    }
    return evaluate(task, probabilities, targets, **(arguments | changed)), probabilities, targets, groups


def test_figures_are_the_tasks_and_the_interval_holds_them() -> None:
    found, probabilities, targets, _ = _evaluated()
    metrics = get_task("attractiveness").metrics(probabilities, targets)
    assert {name: figure.value for name, figure in found.per_image.items()} == metrics
    mae = found.per_image["mae"]
    assert mae.low < mae.value < mae.high
    assert mae.baseline > mae.value
    assert (found.num_rows, found.num_videos, found.num_groups) == (400, 200, 100)


def test_intervals_are_wider_where_rows_of_a_creator_are_alike() -> None:
    by_creator = _evaluated()[0].per_image["mae"]
    _, _, targets, _ = _evaluated()
    by_row = _evaluated(groups=[f"own{i}" for i in range(len(targets))])[0].per_image["mae"]
    assert by_creator.high - by_creator.low > 1.5 * (by_row.high - by_row.low)


def test_a_video_is_answered_by_the_mean_of_its_crops() -> None:
    task = get_task("attractiveness")
    p = np.concatenate([_one_hot(np.array([10]), 40, 1.0), _one_hot(np.array([20]), 40, 1.0)])
    found = evaluate(
        task,
        {"score": p},
        np.array([[15], [15]]),
        videos=["v", "v"],
        groups=["c", "c"],
        baseline=task.baseline(np.array([[15]])),
        half_widths={},
        columns={},
        num_resamples=2,
    )
    assert found.per_image["mae"].value == pytest.approx(5, abs=1e-3)
    assert found.per_video["mae"].value == pytest.approx(0, abs=1e-3)


def test_slices_are_measured_by_themselves_and_the_worst_comes_first() -> None:
    task = get_task("attractiveness")
    truth = np.full(100, 20)
    answer = np.where(np.arange(100) < 50, 20, 28)
    columns = {
        "half": ["easy" if i < 50 else "hard" for i in range(100)],
        "rare": ["x" if i < 5 else None for i in range(100)],
    }
    found = evaluate(
        task,
        {"score": _one_hot(answer, 40, 1.0)},
        truth[:, None],
        videos=[str(i) for i in range(100)],
        groups=[str(i) for i in range(100)],
        baseline=task.baseline(truth[:, None]),
        half_widths={},
        columns=columns,
        num_resamples=5,
    )
    assert [(item.value, item.num_rows) for item in found.slices] == [("hard", 50), ("easy", 50)]
    assert [item.figure.value for item in found.slices] == pytest.approx([8, 0], abs=1e-3)


def test_coverage_is_the_share_within_the_interval() -> None:
    found, probabilities, targets, _ = _evaluated()
    errors = get_task("attractiveness").residuals(probabilities, targets)["score"]
    assert found.coverage["score"].covered == pytest.approx((errors <= 4.0).mean())
    assert found.coverage["score"].level == 0.7


def test_calibration_tells_a_head_that_is_too_sure() -> None:
    task = get_task("fs2k")
    rng = np.random.default_rng(0)
    targets = np.zeros((1000, 7), dtype=np.int64)
    probabilities = {head.name: _one_hot(np.zeros(1000, dtype=int), len(head.classes), 0.9) for head in task.heads}
    wrong = rng.random(1000) < 0.4
    probabilities["smile"] = _one_hot(np.where(wrong, 1, 0), 2, 0.9)
    found = evaluate(
        task,
        probabilities,
        targets,
        videos=[str(i) for i in range(1000)],
        groups=[str(i) for i in range(1000)],
        baseline=task.baseline(targets),
        half_widths={},
        columns={},
        num_resamples=2,
    )
    assert found.reliability["smile"].ece == pytest.approx(0.3, abs=0.05)
    assert found.reliability["hair"].ece == pytest.approx(0.1, abs=0.01)
    assert "roc_auc_smile" not in found.per_image  # all labels are alike


def test_rows_without_a_label_have_no_part() -> None:
    task = get_task("attractiveness")
    probabilities, targets, groups = _scored(40)
    targets = targets.copy()
    targets[::2] = MISSING
    found = evaluate(
        task,
        probabilities,
        targets,
        videos=[f"v{i // 2}" for i in range(40)],
        groups=groups,
        baseline=task.baseline(targets),
        half_widths={},
        columns={},
        num_resamples=5,
    )
    assert (found.num_rows, found.num_videos) == (20, 20)
    with pytest.raises(UserError, match="no row has a label"):
        task.metrics(probabilities, np.full_like(targets, MISSING))


def test_resamples_take_creators_whole() -> None:
    group_of = np.array([0, 1, 1, 2, 2, 2])
    for rows in resample(group_of, 20):
        counts = np.bincount(rows, minlength=6)
        assert counts[1] == counts[2]
        assert counts[3] == counts[4] == counts[5]


def test_one_creator_varies_in_nothing_so_there_is_no_interval() -> None:
    task = get_task("attractiveness")
    truth = np.arange(40) % 30
    sides = ["left" if row < 12 else "right" for row in range(40)]
    found = evaluate(
        task,
        {"score": _one_hot(truth + 2, 40, 0.9)},
        truth[:, None],
        videos=[str(row) for row in range(40)],
        groups=["c" if row < 12 else str(row) for row in range(40)],
        baseline=task.baseline(truth[:, None]),
        half_widths={},
        columns={"side": sides},
        num_resamples=20,
    )
    left, right = sorted(found.slices, key=lambda item: item.value)
    assert (left.num_groups, left.figure.low, left.figure.high) == (1, None, None)
    assert right.figure.low is not None
    assert left.figure.baseline is not None
    assert left.figure.baseline > left.figure.value
