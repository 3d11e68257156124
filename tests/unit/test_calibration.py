import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.calibration import Calibration, conformal_half_width, fit_calibration, fit_temperature
from models.tasks.base import MISSING, get_task


def drawn(num_rows, num_classes, seed=0):
    """Logits, and targets drawn from their softmax: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (num_rows, num_classes)).astype(np.float32)
    p = torch.softmax(torch.from_numpy(logits), 1).numpy()
    targets = (p.cumsum(1) > rng.random((num_rows, 1))).argmax(1)
    return torch.from_numpy(logits), torch.from_numpy(targets)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_undoes_overconfidence(factor):
    logits, targets = drawn(4000, 5)
    assert fit_temperature(logits * factor, targets) == pytest.approx(factor, rel=0.1)


def test_temperature_is_the_minimum_of_the_likelihood():
    logits, targets = drawn(300, 4, seed=1)

    def loss(temperature):
        return torch.nn.functional.cross_entropy(logits.double() * 2 / temperature, targets).item()

    best = fit_temperature(logits * 2, targets)
    assert all(loss(best) <= loss(best * change) + 1e-9 for change in (0.5, 0.95, 1.05, 2))


def test_a_head_that_is_always_right_is_not_driven_to_certainty():
    logits = torch.eye(3).repeat(10, 1)
    assert fit_temperature(logits, torch.arange(3).repeat(10)) == pytest.approx(0.05, rel=1e-2)


@given(st.lists(st.floats(0, 40), max_size=60), st.sampled_from([0.5, 0.8, 0.9]))
def test_half_width_is_the_smallest_that_covers_enough(residuals, level):
    half_width = conformal_half_width(np.array(residuals), level)
    needed = math.ceil((len(residuals) + 1) * level)
    if needed > len(residuals):
        assert half_width is None
    else:
        assert sum(residual <= half_width for residual in residuals) >= needed
        assert sum(residual < half_width for residual in residuals) < needed


def test_new_rows_are_covered_as_often_as_promised():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        residuals = rng.exponential(3.0, 30)
        covered.append(residuals[-1] <= conformal_half_width(residuals[:-1], 0.9))
    assert 0.88 < np.mean(covered) < 0.93  # exactly 27/30 in the limit


def test_attractiveness_gets_a_temperature_and_an_interval():
    task = get_task("attractiveness")
    logits, targets = drawn(500, 40)
    targets = targets.numpy()[:, None]
    targets[:100] = MISSING
    calibration = fit_calibration(task, {"score": logits * 3}, targets)
    assert calibration.temperatures["score"] == pytest.approx(3, rel=0.15)
    interval = calibration.intervals["score"]
    assert (interval.level, interval.num_rows) == (0.9, 400)
    residuals = task.residuals(calibration.probabilities({"score": logits * 3}), targets)["score"]
    assert 0.9 <= (residuals <= interval.half_width).mean() < 0.91
    assert calibration.half_widths == {"score": interval.half_width}


def test_too_few_rows_give_no_interval():
    logits, targets = drawn(5, 40)
    assert fit_calibration(get_task("attractiveness"), {"score": logits}, targets.numpy()[:, None]).intervals == {}


def test_fs2k_gets_a_temperature_for_each_labelled_attribute_and_no_interval():
    task = get_task("fs2k")
    pairs = {head.name: drawn(50, len(head.classes), seed) for seed, head in enumerate(task.heads)}
    targets = np.stack([pair[1].numpy() for pair in pairs.values()], axis=1)
    targets[:, 0] = MISSING
    calibration = fit_calibration(task, {name: pair[0] for name, pair in pairs.items()}, targets)
    assert set(calibration.temperatures) == set(task.label_columns) - {"hair"}
    assert calibration.intervals == {}


def test_probabilities_are_the_softmax_over_the_temperature_and_unchanged_without_one():
    logits = torch.tensor([[1.0, 3.0]])
    plain = Calibration().probabilities({"a": logits})["a"]
    np.testing.assert_allclose(plain, [[1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))]], rtol=1e-6)
    warm = Calibration(temperatures={"a": 2.0}).probabilities({"a": logits.bfloat16()})["a"]
    assert warm.dtype == np.float32
    np.testing.assert_allclose(warm, [[1 / (1 + math.e), 1 / (1 + 1 / math.e)]], rtol=1e-6)
