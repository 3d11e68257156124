"""The gates of a promotion: their limits as a YAML file, and the verdict of each on what was measured."""

from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, field_validator

from infra.errors import UserError
from models.evaluation import Evaluation
from models.scorer import ScorerManifest
from ray_jobs.comparing import Compared
from ray_jobs.limits_file import read_limits_file
from ray_jobs.promoting.hardware import Cost
from ray_jobs.promoting.shadow import MIN_SLICE, Shadow

_ERRORS = ("mae", "rmse")  # metrics that are better when lower


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class QualityGate(_Section):
    """On the frozen evaluation set, over crops."""

    metric: str | None = Field(None, description="Metric to decide by; null: the task's best metric.")
    max_loss: float = Field(
        0.02, ge=0, description="How much worse it may be, as a share of the champion's figure, at 95% confidence."
    )
    min_creators: int = Field(20, ge=2, description="Fewer creators say too little: their spread is the interval.")
    fingerprint: str | None = Field(None, description="Of the only dataset that may decide; null: whichever is given.")


class SliceGate(_Section):
    """On parts of the evaluation set."""

    max_loss: float = Field(
        0.1, ge=0, description="How much worse a slice may be, as a share of the champion's figure."
    )
    min_rows: int = Field(30, ge=10, description="Slices of fewer crops say too little.")
    min_creators: int = Field(
        5, ge=2, description="So do slices of fewer creators, whose interval is too narrow, but for those with a limit."
    )
    limits: dict[str, NonNegativeFloat] = Field(
        default_factory=dict,
        description="Limits of single slices, as 'COLUMN: VALUE' or 'COLUMN' -> share; chance is no excuse for these.",
    )


class CalibrationGate(_Section):
    """Whether probabilities and intervals mean what they say."""

    max_ece_rise: float = Field(0.05, ge=0, description="Rise of the mean expected calibration error over heads.")
    max_undercoverage: float = Field(
        0.05, ge=0, description="How far the share that an interval holds may lie below the promised one."
    )


class HardwareGate(_Section):
    """The predictor on this machine, against the champion's."""

    max_time_ratio: float = Field(1.5, gt=0, description="Milliseconds a crop.")
    max_memory_ratio: float = Field(1.5, gt=0, description="Largest memory of a process that predicts.")


class ContractGate(_Section):
    """What goes into a scorer: policies of frames and faces. What comes out is the task's, and checked on loading."""

    may_change: bool = Field(False, description="A changed contract is meant: the catalog is decoded again for it.")


class ShadowGate(_Section):
    """What the change does to a sample of the catalog."""

    max_psi: float = Field(0.25, ge=0, description="Population stability index of each answer's distribution.")
    max_ks: float = Field(0.2, ge=0, le=1, description="Kolmogorov-Smirnov distance of each numeric answer.")
    min_rank_correlation: float = Field(0.7, ge=-1, le=1, description="Spearman's, of each numeric answer.")
    max_changed: float = Field(
        0.35, ge=0, le=1, description="Share of videos whose score changes its band, or whose answer changes."
    )
    max_lost: float = Field(
        0.02, ge=0, le=1, description="Share of the champion's videos in which the challenger finds no face."
    )
    bands: tuple[float, ...] = Field(
        (70, 80, 90), min_length=1, description="Where the score's bands begin, in points, rising."
    )
    max_slice_shift: float = Field(
        0.5, ge=0, description="Shift of a numeric answer's mean in a slice of 20 videos, in standard deviations."
    )

    @field_validator("bands")
    @classmethod
    def _rise(cls, bands: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in pairwise(bands)):
            raise ValueError("the bands do not rise")
        return bands


class Gates(BaseModel):
    """All gates; a section that is null is not asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quality: QualityGate | None = Field(QualityGate(), description="Quality on the evaluation set.")
    slices: SliceGate | None = Field(SliceGate(), description="Quality on its parts.")
    calibration: CalibrationGate | None = Field(CalibrationGate(), description="Probabilities and intervals.")
    hardware: HardwareGate | None = Field(HardwareGate(), description="Time and memory.")
    contract: ContractGate | None = Field(ContractGate(), description="Input and output.")
    shadow: ShadowGate | None = Field(ShadowGate(), description="The sample of the catalog.")


class Verdict(BaseModel):
    """One gate's answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: str = Field(description="Section of the gates file.")
    what: str = Field(description="What was measured.")
    figure: float | None = Field(description="What it came to; null where it could not be had.")
    limit: float | None = Field(description="Its limit.")
    passed: bool = Field(description="Whether it is kept.")
    words: str = Field("", description="More about it.")


def read_gates(path: str | None) -> Gates:
    """The gates of a YAML file; the defaults without one.

    Raises:
        UserError: Names the field that is wrong.
    """
    return read_limits_file(path, Gates, "gates")


def judge_quality(gate: QualityGate, found: Compared) -> list[Verdict]:
    """The paired difference's interval against the champion; against the trivial answer where there is none."""
    metric = gate.metric or found.task.best_metric
    figures = found.evaluations[0].per_image
    if metric not in figures:
        raise UserError(f"gates: quality.metric {metric!r} is none of {found.task.name}'s; it has {', '.join(figures)}")
    sign = -1 if metric.startswith(_ERRORS) else 1
    figure = figures[metric]
    num_creators = found.evaluations[0].num_groups
    if num_creators < gate.min_creators:
        why = f"the evaluation set has {num_creators} creators, fewer than min_creators {gate.min_creators}"
        return [unmeasured("quality", metric, why)]
    if len(found.evaluations) < 2:
        assert figure.baseline is not None
        gain = sign * (figure.value - figure.baseline)
        words = f"{figure.value:.4g}, the trivial answer {figure.baseline:.4g}; there is no champion yet"
        return [
            Verdict(
                gate="quality",
                what=f"{metric}: gain over the trivial answer",
                figure=gain,
                limit=0.0,
                passed=gain > 0,
                words=words,
            )
        ]
    champion, difference = found.evaluations[1].per_image[metric].value, found.differences[metric]
    what = f"{metric}: loss at 95% confidence"
    if difference.low is None or difference.high is None:
        return [unmeasured("quality", what, "the evaluation set is too small for an interval")]
    worst = -difference.low if sign > 0 else difference.high
    limit = gate.max_loss * abs(champion)
    words = (
        f"{figure.value:.4g} against {champion:.4g}: {difference.value:+.4g} "
        f"({difference.low:+.4g} to {difference.high:+.4g})"
    )
    return [Verdict(gate="quality", what=what, figure=worst, limit=limit, passed=worst <= limit, words=words)]


def judge_slices(gate: SliceGate, found: Compared) -> list[Verdict]:
    """Slices that are worse beyond their limit, and not by chance; where there is none, the one that comes nearest.

    Of many slices one is worse by chance: of k beyond the limit, the interval that decides about each is at
    1 - 0.05 / k (Bonferroni).

    Bands of the label itself are no slices here: who answers the mean to everything is best in the band around it, and
    every better scorer is worse there.
    """
    if len(found.evaluations) < 2:
        return []
    before = {(item.column, item.value): item for item in found.evaluations[1].slices}
    sign = 1 if found.task.higher_is_better else -1
    slices = [
        (item, other)
        for item in found.evaluations[0].slices
        if (other := before.get((item.column, item.value))) is not None
        and item.num_rows >= gate.min_rows
        and (item.num_groups >= gate.min_creators or {item.column, f"{item.column}: {item.value}"} & gate.limits.keys())
        and item.column not in found.task.label_columns
    ]
    if not slices:
        return [
            unmeasured(
                "slices",
                found.task.best_metric,
                f"no part of the evaluation set has {gate.min_rows} crops of {gate.min_creators} creators",
            )
        ]
    names = {item.column for item, _ in slices} | {f"{item.column}: {item.value}" for item, _ in slices}
    if unknown := sorted(gate.limits.keys() - names):
        raise UserError(f"gates: slices.limits {unknown[0]!r} is no slice here; there are {', '.join(sorted(names))}")
    verdicts = []
    for item, other in slices:
        name = f"{item.column}: {item.value}"
        own_limit = gate.limits.get(name, gate.limits.get(item.column))
        loss = sign * (other.figure.value - item.figure.value)
        limit = (gate.max_loss if own_limit is None else own_limit) * abs(other.figure.value)
        words = f"{item.figure.value:.4g} against {other.figure.value:.4g} ({item.num_rows} crops)"
        verdicts.append(
            Verdict(
                gate="slices",
                what=f"{name}: loss of {found.task.best_metric}",
                figure=loss,
                limit=limit,
                passed=loss <= limit,
                words=words if own_limit is None else f"{words}, limit of its own",
            )
        )
    beyond = sum(not verdict.passed for verdict in verdicts)
    for index, (item, _) in enumerate(slices):
        if verdicts[index].passed or verdicts[index].words.endswith("limit of its own"):
            continue
        level = 1 - 0.05 / beyond
        difference = found.slice_difference(item.column, item.value, level)
        if difference.low is not None and difference.high is not None:
            by_chance = max(sign * difference.low, sign * difference.high) >= 0  # it may be no worse at all
            words = (
                f"{verdicts[index].words}, difference {difference.low:+.3g} to {difference.high:+.3g} at {level:.1%}"
            )
            verdicts[index] = verdicts[index].model_copy(
                update={"passed": by_chance, "words": words + (", may be chance" if by_chance else "")}
            )
    verdicts.sort(key=lambda verdict: (verdict.passed, (verdict.limit or 0) - (verdict.figure or 0)))
    refused = [verdict for verdict in verdicts if not verdict.passed]
    return refused or verdicts[:1]


def judge_calibration(gate: CalibrationGate, found: Compared) -> list[Verdict]:
    """Mean expected calibration error against the champion's; coverage against what the interval promises."""
    verdicts = []
    now = _mean_ece(found.evaluations[0])
    if len(found.evaluations) > 1:
        before, before_coverage = _mean_ece(found.evaluations[1]), found.evaluations[1].coverage
        verdicts.append(
            Verdict(
                gate="calibration",
                what="rise of the expected calibration error",
                figure=now - before,
                limit=gate.max_ece_rise,
                passed=now - before <= gate.max_ece_rise,
                words=f"{now:.3f} against {before:.3f}, mean over heads",
            )
        )
        for name in before_coverage.keys() - found.evaluations[0].coverage.keys():
            why = "the champion answers with an interval, this scorer without"
            verdicts.append(unmeasured("calibration", f"{name}: its interval", why))
    for name, coverage in found.evaluations[0].coverage.items():
        lacking = coverage.level - coverage.covered
        verdicts.append(
            Verdict(
                gate="calibration",
                what=f"{name}: undercoverage of its interval",
                figure=lacking,
                limit=gate.max_undercoverage,
                passed=lacking <= gate.max_undercoverage,
                words=f"holds {coverage.covered:.1%} of {coverage.num_rows} crops, promises {coverage.level:.0%}",
            )
        )
    return verdicts


def judge_hardware(gate: HardwareGate, costs: Sequence[Cost]) -> list[Verdict]:
    """Ratios to the champion, which was measured in the same minute on the same machine."""
    if len(costs) < 2:
        return []
    now, before = costs
    pairs = [
        ("time", "milliseconds a crop", now.ms_per_crop, before.ms_per_crop, gate.max_time_ratio, "{:.3g} ms"),
        ("memory", "largest memory", now.peak_mib, before.peak_mib, gate.max_memory_ratio, "{:,.0f} MiB"),
    ]
    return [
        Verdict(
            gate="hardware",
            what=f"{what}: ratio to the champion's",
            figure=value / other,
            limit=limit,
            passed=value / other <= limit,
            words=f"{form.format(value)} against {form.format(other)} on {now.device}",
        )
        for _, what, value, other, limit, form in pairs
    ]


def judge_contract(gate: ContractGate, now: ScorerManifest, before: ScorerManifest | None) -> list[Verdict]:
    """Which parts of the contract differ."""
    changed = [] if before is None else contract_changes(now, before)
    return [
        Verdict(
            gate="contract",
            what="changed parts of the input",
            figure=float(len(changed)),
            limit=None if gate.may_change else 0.0,
            passed=gate.may_change or not changed,
            words=", ".join(changed) or "none",
        )
    ]


def contract_changes(now: ScorerManifest, before: ScorerManifest) -> list[str]:
    """Fields of the contract in which two scorers differ."""
    changed = []
    for section in ("frame_policy", "face_policy"):
        ours, theirs = (getattr(manifest, section).model_dump() for manifest in (now, before))
        changed += [f"{section}.{name}" for name in ours if ours[name] != theirs[name]]
    return changed


def judge_shadow(gate: ShadowGate, shadow: Shadow) -> list[Verdict]:
    """The sample of the catalog: every answer's shift against its limits."""

    def verdict(what: str, figure: float, limit: float, *, least: bool = False, words: str = "") -> Verdict:
        passed = figure >= limit if least else figure <= limit
        return Verdict(gate="shadow", what=what, figure=figure, limit=limit, passed=passed, words=words)

    if shadow.num_videos < MIN_SLICE:
        why = f"only {shadow.num_videos} videos of the sample gave both scorers a face"
        return [unmeasured("shadow", "sample of the catalog", why)]
    lost = shadow.num_lost / max(shadow.num_videos + shadow.num_lost, 1)
    words = f"{shadow.num_lost} videos; in {shadow.num_gained} it finds one where the champion finds none"
    verdicts = [verdict("share of videos in which it finds no face any more", lost, gate.max_lost, words=words)]
    for answer in shadow.answers:
        name, shift = answer.shift.name, answer.shift
        verdicts.append(verdict(f"{name}: population stability index", shift.psi, gate.max_psi))
        if shift.ks is not None:
            words = f"mean {shift.before:.4g}, then {shift.now:.4g}"
            verdicts.append(verdict(f"{name}: Kolmogorov-Smirnov distance", shift.ks, gate.max_ks, words=words))
        if answer.rank_correlation is not None:
            what = f"{name}: rank correlation, at least"
            verdicts.append(verdict(what, answer.rank_correlation, gate.min_rank_correlation, least=True))
        what = f"{name}: share of videos that change {'class' if shift.ks is None else 'band'}"
        verdicts.append(verdict(what, answer.changed, gate.max_changed, words=f"of {shadow.num_videos} videos"))
        if answer.slices:
            worst = max(answer.slices, key=lambda item: abs(item.shift))
            words = f"{worst.column}: {worst.value}, {worst.num_videos} videos"
            what = f"{name}: largest shift of a slice, standard deviations"
            verdicts.append(verdict(what, abs(worst.shift), gate.max_slice_shift, words=words))
    return verdicts


def unmeasured(gate: str, what: str, why: str) -> Verdict:
    """A gate without a figure: it is not passed."""
    return Verdict(gate=gate, what=what, figure=None, limit=None, passed=False, words=why)


def _mean_ece(evaluation: Evaluation) -> float:
    values = [item.ece for item in evaluation.reliability.values()]
    return sum(values) / max(len(values), 1)
