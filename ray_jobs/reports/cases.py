"""The best and worst cases of an evaluation with what may lie behind them, and labels against answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.storage import Storage
from models.scorer import Scorer
from models.tasks.base import MISSING, Probabilities, Targets, Task
from ray_jobs.crops.mapping import scanned
from ray_jobs.reports.evaluation import Case, Confusion
from ray_jobs.reports.facts import Bin
from ray_jobs.reports.plots import Plot, count_bars

NUM_CASES = 24
MAX_CONFUSION, BAND = 10, 5  # larger heads are shown in bands of classes
_BLURRED, _SMALL, _TURNED_DEG = 0.1, 0.1, 30.0


def _errors(task: Task, answer: Probabilities, targets: Targets) -> npt.NDArray[np.float64]:
    """How wrong each row is: points of score, or mean of 1 - p(label) over the labelled heads; NaN without a label."""
    missing = (targets == MISSING).all(axis=1)
    scaled = task.residuals(answer, targets)
    if scaled:
        errors = np.full(len(targets), np.nan)
        errors[~missing] = next(iter(scaled.values()))
        return errors
    doubts = np.full(targets.shape, np.nan)
    for column, head in enumerate(task.heads):
        known = np.flatnonzero(targets[:, column] != MISSING)
        doubts[known, column] = 1 - answer[head.name][known, targets[known, column]]
    counts = (~np.isnan(doubts)).sum(axis=1)
    return np.asarray(np.where(counts, np.nansum(doubts, axis=1) / np.maximum(counts, 1), np.nan))


def find_cases(
    task: Task,
    scorer: Scorer,
    answer: Probabilities,
    targets: Targets,
    table: pa.Table,
    parts: Sequence[str],
    storage: Storage,
) -> dict[str, list[Case]]:
    """The worst rows by suspected cause, and the best ones, with their pictures."""
    errors = _errors(task, answer, targets)
    order = np.argsort(-np.nan_to_num(errors, nan=-1), kind="stable")
    known = [int(row) for row in order if not np.isnan(errors[row])]
    worst, best = known[:NUM_CASES], known[: -NUM_CASES // 2 - 1 : -1]
    chosen = sorted({*worst, *best})
    crops = scanned(parts, storage).take(pa.array(chosen, pa.int64()), columns=["crop"])["crop"].to_pylist()
    pictures = dict(zip(chosen, crops, strict=True))
    given = task.columns(answer, scorer.manifest.calibration.half_widths)
    groups: dict[str, list[Case]] = {}
    for row in worst:
        case = _case(task, row, given, targets, table, errors, pictures[row])
        groups.setdefault(_suspect(task, row, answer, targets, table, errors), []).append(case)
    groups["best answers"] = [_case(task, row, given, targets, table, errors, pictures[row]) for row in best]
    return groups


def _case(
    task: Task,
    row: int,
    given: dict[str, Any],
    targets: Targets,
    table: pa.Table,
    errors: npt.NDArray[np.float64],
    picture: bytes,
) -> Case:
    lines = []
    for column, head in enumerate(task.heads):
        if targets[row, column] == MISSING:
            continue
        label, said = head.classes[targets[row, column]], given[head.name][row]
        if len(task.heads) > 1 and str(label) == str(said):
            continue  # of several attributes the wrong ones are worth a line
        low, high = (given.get(f"{head.name}_{end}", [None] * (row + 1))[row] for end in ("low", "high"))
        span = "" if low is None else f" ({low:.0f}–{high:.0f})"
        answer = f"{said:.1f}" if isinstance(said, float | np.floating) else str(said).lower()
        lines.append((head.name, str(label).lower(), f"{answer}{span}"))
    return Case(str(table["video_id"][row]), tuple(lines), float(errors[row]), picture)


def _suspect(
    task: Task, row: int, answer: Probabilities, targets: Targets, table: pa.Table, errors: npt.NDArray[np.float64]
) -> str:
    """Why a row may be wrong, by what is known of it; the first of these that holds."""
    facts = {name: table[name][row].as_py() for name in ("yaw_deg", "sharpness", "size_px", "confidence", "remarks")}
    if facts["remarks"]:
        return f"remark: {', '.join(facts['remarks'])}".replace("_", " ")
    if facts["confidence"] is not None and facts["confidence"] < 0.97:
        return "perhaps no face, or half of one"
    if facts["yaw_deg"] is not None and abs(facts["yaw_deg"]) > _TURNED_DEG:
        return "turned away"
    for name, share, words in (("sharpness", _BLURRED, "blurred"), ("size_px", _SMALL, "small face")):
        if facts[name] is not None and facts[name] <= np.nanquantile(table[name].to_numpy().astype(float), share):
            return words
    wrong = [
        answer[head.name][row].max()
        for column, head in enumerate(task.heads)
        if targets[row, column] != MISSING and answer[head.name][row].argmax() != targets[row, column]
    ]
    if len(task.heads) > 1 and wrong and min(wrong) > 0.8:
        return "sure of another answer: perhaps a wrong label"
    if len(task.heads) == 1 and errors[row] > 3 * np.nanmedian(errors):
        return "far off: perhaps a wrong label"
    return "no suspicion"


def confusions(task: Task, answer: Probabilities, targets: Targets) -> list[Confusion]:
    """Labels against answers, head by head; a scale by bands of five, answered by its column."""
    found = []
    for column, head in enumerate(task.heads):
        known = targets[:, column] != MISSING
        label, said = targets[known, column], answer[head.name][known].argmax(axis=1)
        names = [str(value).lower() for value in head.classes]
        if len(names) > MAX_CONFUSION:
            column_values = task.columns({name: p[known] for name, p in answer.items()})[head.name]
            lowest = int(names[0])
            said = np.clip(np.rint(np.asarray(column_values, dtype=float)).astype(int) - lowest, 0, len(names) - 1)
            label, said = label // BAND, said // BAND
            names = [f"{names[i]}–{names[min(i + BAND, len(names)) - 1]}" for i in range(0, len(names), BAND)]
        counts = np.zeros((len(names), len(names)), dtype=int)
        np.add.at(counts, (label, said), 1)
        found.append(Confusion(head.name, tuple(names), tuple(tuple(row) for row in counts.tolist())))
    return found


def error_histogram(task: Task, answer: Probabilities, targets: Targets) -> Plot | None:
    """Crops by their absolute error, in whole points; None for a task whose errors have no size."""
    scaled = task.residuals(answer, targets)
    if not scaled:
        return None
    name, errors = next(iter(scaled.items()))
    counts = np.bincount(np.floor(errors).astype(int))
    bins = [Bin(float(low), 1, int(number)) for low, number in enumerate(counts)]
    median = float(np.median(errors))
    return count_bars(
        bins,
        title="Crops by absolute error",
        x_label=f"absolute error of {name}, points",
        alt=f"{len(errors):,} crops, median absolute error {median:.1f}, largest {errors.max():.1f}",
        marks=[(median, f"median {median:.1f}")],
        noun="crop",
    )
