"""Each gate refuses what it is for, passes what it is not for, and says what it compared."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from infra.errors import UserError
from models.calibration import Calibration, Interval
from models.faces.policy import FacePolicy
from models.tasks.base import get_task
from models.video.sampling import FramePolicy
from ray_jobs.comparing import Compared
from ray_jobs.comparing import compare as compare_answers
from ray_jobs.promoting.gates import (
    CalibrationGate,
    ContractGate,
    Gates,
    HardwareGate,
    QualityGate,
    ShadowGate,
    SliceGate,
    judge_calibration,
    judge_contract,
    judge_hardware,
    judge_quality,
    judge_shadow,
    judge_slices,
    read_gates,
)
from ray_jobs.promoting.hardware import Cost, measure_cost
from ray_jobs.promoting.shadow import Shadow, compare, movers
from tests.unit.scorers import small_manifest, small_scorer

TASK = get_task("attractiveness")
NUM, CREATORS = 600, 60
Errors = npt.NDArray[np.float64]


def answers(errors: Errors) -> dict[str, npt.NDArray[np.float32]]:
    """Distributions whose expectations miss the labels by these points."""
    means = (labels() + errors).clip(60, 99)
    scores = np.arange(60, 100)
    p = np.exp(-0.5 * ((scores - means[:, None]) / 2) ** 2)
    return {"score": (p / p.sum(axis=1, keepdims=True)).astype(np.float32)}


def labels() -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(66, 94, NUM)


def styles() -> list[str | None]:
    return ["sketch" if row % 4 == 0 else "photo" for row in range(NUM)]


def compared(now: Errors, before: Errors | None) -> Compared:
    """Answers with these errors; ten crops a creator."""
    targets = (labels() - 60)[:, None]
    given = [answers(errors) for errors in (now, before) if errors is not None]
    return compare_answers(
        TASK,
        given,
        targets,
        videos=[str(row) for row in range(NUM)],
        groups=[str(row % CREATORS) for row in range(NUM)],
        baseline=TASK.baseline(targets),
        calibrations=[Calibration(intervals={"score": Interval(half_width=6, level=0.9, num_rows=100)})] * len(given),
        columns={"style": styles()},
        num_resamples=100,
    )


def errors(std: float, seed: int = 1) -> Errors:
    return np.random.default_rng(seed).normal(0, std, NUM)


def test_quality_wants_better_or_hardly_worse_at_95_percent() -> None:
    (better,) = judge_quality(QualityGate(), compared(errors(2), errors(4)))
    assert better.passed
    assert better.figure is not None
    assert better.figure < 0  # even the worst of the interval is a gain
    (worse,) = judge_quality(QualityGate(), compared(errors(4), errors(3)))
    assert not worse.passed
    # As good as the champion: chance alone may make it look worse by more than 2%, but not by more than 30%.
    alike = compared(errors(3, seed=2), errors(3, seed=1))
    assert not judge_quality(QualityGate(), alike)[0].passed
    assert judge_quality(QualityGate(max_loss=0.3), alike)[0].passed
    (other,) = judge_quality(QualityGate(metric="within_3"), compared(errors(2), errors(4)))
    assert other.passed
    with pytest.raises(UserError, match="'f1' is none of attractiveness's"):
        judge_quality(QualityGate(metric="f1"), alike)


def test_the_first_champion_has_to_beat_the_trivial_answer() -> None:
    (verdict,) = judge_quality(QualityGate(), compared(errors(2), None))
    assert verdict.passed
    (verdict,) = judge_quality(QualityGate(), compared(errors(20), None))
    assert not verdict.passed
    assert judge_slices(SliceGate(), compared(errors(2), None)) == []


def test_a_slice_refuses_what_is_better_on_average() -> None:
    sketches = np.asarray(styles()) == "sketch"
    now = np.where(sketches, 9.0, errors(1))
    found = compared(now, errors(6))
    assert judge_quality(QualityGate(), found)[0].passed
    (verdict,) = judge_slices(SliceGate(), found)
    assert not verdict.passed
    assert verdict.what == "style: sketch: loss of mae"
    assert "150 crops" in verdict.words
    (allowed,) = judge_slices(SliceGate(limits={"style: sketch": 2.0}), found)
    assert allowed.passed
    (unmeasured,) = judge_slices(SliceGate(min_rows=500), found)
    assert (unmeasured.figure, unmeasured.passed) == (None, False)
    assert all(item.passed for item in judge_slices(SliceGate(min_rows=200), found))
    # Few people decide nothing, but where somebody watches the slice.
    (unmeasured,) = judge_slices(SliceGate(min_creators=61), found)
    assert "of 61 creators" in unmeasured.words
    (watched,) = judge_slices(SliceGate(min_creators=61, limits={"style: sketch": 0.1}), found)
    assert not watched.passed
    with pytest.raises(UserError, match=r"slices.limits 'style: Sketch' is no slice here"):
        judge_slices(SliceGate(limits={"style: Sketch": 0.0}), found)


def test_a_slice_that_may_be_worse_by_chance_passes_and_says_so() -> None:
    now, before = errors(3, seed=6), errors(3, seed=1)
    (verdict,) = judge_slices(SliceGate(max_loss=0.0), compared(now, before))
    assert verdict.passed
    assert verdict.words.endswith("may be chance")
    # A limit of its own is meant as it stands.
    refused = judge_slices(SliceGate(max_loss=0.0, limits={"style": 0.0}), compared(now, before))
    assert [item.passed for item in refused] == [False] * len(refused)


def test_calibration_wants_intervals_that_hold_what_they_promise() -> None:
    rise, coverage = judge_calibration(CalibrationGate(), compared(errors(2), errors(2)))
    assert rise.passed
    assert coverage.passed
    rise, coverage = judge_calibration(CalibrationGate(), compared(errors(8), errors(2)))
    assert not coverage.passed
    assert "promises 90%" in coverage.words
    assert not rise.passed


def test_a_scorer_without_the_champions_interval_is_not_calibrated() -> None:
    found = compared(errors(2), errors(2))
    bare = found.evaluations[0].model_copy(update={"coverage": {}})
    verdicts = judge_calibration(CalibrationGate(), replace(found, evaluations=(bare, found.evaluations[1])))
    assert [(item.what, item.passed) for item in verdicts][1:] == [("score: its interval", False)]


def test_few_creators_decide_nothing() -> None:
    (verdict,) = judge_quality(QualityGate(min_creators=61), compared(errors(2), errors(4)))
    assert (verdict.figure, verdict.passed) == (None, False)
    assert "60 creators, fewer than min_creators 61" in verdict.words


def test_the_memory_of_a_large_parent_is_not_the_predictors(tmp_path: Path) -> None:
    small_scorer(tmp_path / "scorer", "fs2k")
    ballast = np.ones(1 << 27)  # a gigabyte
    cost = measure_cost(tmp_path / "scorer")
    del ballast
    assert cost.device in ("cpu", "cuda")
    assert 0 < cost.peak_mib < 700
    assert cost.ms_per_crop > 0


def test_hardware_compares_time_and_memory() -> None:
    light, heavy = (Cost(device="cpu", ms_per_crop=ms, peak_mib=mib) for ms, mib in ((2, 400), (5, 500)))
    time, memory = judge_hardware(HardwareGate(), [heavy, light])
    assert (time.figure, time.passed) == (2.5, False)
    assert (memory.figure, memory.passed) == (1.25, True)
    assert all(verdict.passed for verdict in judge_hardware(HardwareGate(), [light, heavy]))
    assert judge_hardware(HardwareGate(), [light]) == []


def test_a_changed_contract_has_to_be_declared() -> None:
    before = small_manifest("fs2k")
    assert judge_contract(ContractGate(), before, before)[0].passed
    now = before.model_copy(
        update={"frame_policy": FramePolicy(every=7), "face_policy": FacePolicy(crop_size=64)},
    )
    (verdict,) = judge_contract(ContractGate(), now, before)
    assert not verdict.passed
    assert verdict.words == "frame_policy.every, face_policy.crop_size"
    assert judge_contract(ContractGate(may_change=True), now, before)[0].passed


def shadow(change: Callable[[float], float], num_lost: int = 0) -> Shadow:
    """A sample of 400 videos whose scores change so."""
    before = np.random.default_rng(0).uniform(62, 98, 400)
    rows = [[{"score": float(value)} for value in values] for values in (np.vectorize(change)(before), before)]
    videos = pa.table({"video_id": [str(row) for row in range(400)], "uri": ["/a.mp4"] * 400})
    columns = {"country": ["fr" if row % 4 else "de" for row in range(400)]}
    answers = compare(TASK, *rows, columns, (70, 80, 90))
    found = tuple(movers(TASK, *rows, videos))
    return Shadow(
        catalog="c.csv",
        num_videos=400,
        num_lost=num_lost,
        num_gained=0,
        num_without=3,
        answers=tuple(answers),
        movers=found,
    )


def test_shadow_refuses_each_kind_of_shift() -> None:
    assert all(verdict.passed for verdict in judge_shadow(ShadowGate(), shadow(lambda score: score + 0.2)))
    moved = {v.what: v for v in judge_shadow(ShadowGate(), shadow(lambda score: score + 12))}
    refused = [name for name, verdict in moved.items() if not verdict.passed]
    assert [name.split(": ")[1].split(",")[0] for name in refused] == [
        "population stability index",
        "Kolmogorov-Smirnov distance",
        "share of videos that change band",
        "largest shift of a slice",
    ]
    (lost,) = [item for item in judge_shadow(ShadowGate(), shadow(lambda score: score, num_lost=20)) if not item.passed]
    assert lost.what == "share of videos in which it finds no face any more"
    few = shadow(lambda score: score).model_copy(update={"num_videos": 19})
    assert [(item.figure, item.passed) for item in judge_shadow(ShadowGate(), few)] == [(None, False)]
    upside_down = {v.what: v for v in judge_shadow(ShadowGate(), shadow(lambda score: 160 - score))}
    assert not upside_down["score: rank correlation, at least"].passed
    assert upside_down["score: rank correlation, at least"].figure == pytest.approx(-1)


def test_the_largest_movers_come_first_and_who_stays_is_none() -> None:
    found = shadow(lambda score: score + (20 if score < 65 else 0))
    assert found.movers
    assert [mover.size for mover in found.movers] == sorted((mover.size for mover in found.movers), reverse=True)
    for mover in found.movers:
        ((_, before, now),) = mover.changes
        assert float(now) - float(before) == pytest.approx(20, abs=0.11)
    assert shadow(lambda score: score).movers == ()


def test_shadow_of_classes_counts_changes() -> None:
    task = get_task("fs2k")
    row = {"hair": True, "gender": "female", "earring": False, "smile": True, "frontal_face": True}
    row |= {"hair_color": "brown", "style": 1}
    rows = [[row | {"smile": index % 4 == 0} for index in range(40)], [row for _ in range(40)]]
    by_name = {answer.shift.name: answer for answer in compare(task, *rows, {}, ())}
    assert by_name["smile"].changed == 0.75
    assert by_name["gender"].changed == 0
    assert by_name["smile"].shift.shares_now == (0.75, 0.25)
    videos = pa.table({"video_id": [str(index) for index in range(40)], "uri": ["/a.mp4"] * 40})
    assert movers(task, *rows, videos)[0].changes == (("smile", "True", "False"),)


def test_a_gates_file_names_the_wrong_field_and_switches_gates_off(tmp_path: Path) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text("quality: {max_loss: 0.01}\nshadow: null\n")
    gates = read_gates(str(path))
    assert gates.quality == QualityGate(max_loss=0.01)
    assert gates.shadow is None
    assert gates.slices == SliceGate()
    for text, words in (
        ("quality: {max_los: 0.01}", "quality.max_los: Extra inputs"),
        ("hardware: {max_time_ratio: fast}", "hardware.max_time_ratio: Input should be a valid number"),
        ("shadow: {bands: [90, 70]}", "shadow.bands: Value error, the bands do not rise"),
        ("shadow: {bands: []}", "shadow.bands: Tuple should have at least 1 item"),
        ("quality: {max_loss: .inf}", "quality.max_loss: Input should be a finite number"),
        ("slices: {limits: {style: -1}}", "slices.limits.style: Input should be greater than"),
        ("- a", "the file: Input should be a valid dictionary"),
        ("a: [", "the gates cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_gates(str(path))
    assert read_gates(None) == Gates()
