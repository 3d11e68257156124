"""What scoring the due videos would cost: a pilot over a random sample, which writes nothing."""

import time

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
from pydantic import BaseModel, ConfigDict, Field

from infra.settings import Settings
from models.registry import ResolvedScorer
from ray_jobs.cluster import fit, look
from ray_jobs.console import RunProgress, console
from ray_jobs.planning import Plan
from ray_jobs.score_config import ScoreConfig, extract_config
from ray_jobs.sizing import Resources, num_decoders
from ray_jobs.stages.pipeline import arriving, scored
from ray_jobs.stages.predict import CarriedScorer

NUM_RESAMPLES = 2000
CONFIDENCE = 0.9
SEED = 0


class Range(BaseModel):
    """A figure and its interval."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float


class Estimate(BaseModel):
    """The cost of all due videos, with 90% intervals from the spread between the pilot's videos."""

    model_config = ConfigDict(frozen=True)

    num_pilot: int = Field(description="videos of the pilot")
    num_failed: int = Field(description="of these, how many would be quarantined")
    num_due: int
    num_decoders: int = Field(description="decode tasks that run at a time on this cluster")
    num_predictors: int
    wall_s: Range = Field(description="seconds from the first video to the last, start-up not counted")
    read_bytes: Range = Field(description="bytes fetched from storage")
    cpu_hours: Range = Field(description="hours of logical CPUs in decoding (and in predicting, where it uses no GPU)")
    gpu_hours: Range = Field(description="hours of GPUs in predicting")
    pilot_s: float = Field(description="seconds that the pilot itself took, start-up included")


def estimate_cost(
    plan: Plan,
    config: ScoreConfig,
    resolved: dict[str, ResolvedScorer],
    settings: Settings,
    *,
    num_videos: int,
    quiet: bool = False,
) -> Estimate | None:
    """Score ``num_videos`` random due videos through the real pipeline, keep nothing, and extrapolate.

    Returns:
        None where nothing is due.

    Raises:
        UserError: The cluster has too little for the pipeline.
    """
    if not plan.num_due:
        if not quiet:
            console.print("nothing is due: nothing to estimate")
        return None
    start = time.monotonic()
    resources, cluster = fit(config.resources, settings.cluster)
    sample = plan.sample(num_videos, SEED)
    ds = scored(
        ray.data.from_arrow(sample),
        extract_config(config, resolved, settings),
        [CarriedScorer.carry(found.directory, task, found.scorer.digest) for task, found in resolved.items()],
        resources.spread(sample.num_rows, cluster.num_cpus_now),
    )
    blocks: list[pa.Table] = []
    with RunProgress("pilot", sample.num_rows, quiet=quiet) as progress:
        for rows in arriving(ds):
            blocks.append(rows.select(["reason", "fetched_bytes", "extract_s", "predict_s"]))
            progress.update(sum(block.num_rows for block in blocks))
    decoders = max(1, num_decoders(resources, look()))
    cost = extrapolate(pa.concat_tables(blocks), plan.num_due, decoders, resources, pilot_s=time.monotonic() - start)
    if not quiet:
        print_estimate(cost)
    return cost


def extrapolate(
    pilot: pa.Table, num_due: int, decoders: int, resources: Resources, *, pilot_s: float = 0.0
) -> Estimate:
    """The estimate that a pilot's rows (``reason, fetched_bytes, extract_s, predict_s``) give.

    Sums are the pilot's means times ``num_due``; intervals are percentile bootstraps over the pilot's videos (Efron,
    Tibshirani 1993, 13.3). Decoding and predicting run beside each other, so the slower one sets the time.
    """
    figures = np.stack(
        [pilot[name].fill_null(0).to_numpy().astype(np.float64) for name in ("extract_s", "predict_s", "fetched_bytes")]
    )
    rng = np.random.default_rng(SEED)
    draws = rng.integers(0, pilot.num_rows, (NUM_RESAMPLES, pilot.num_rows))
    # One row a resample, after the pilot itself: float64[1 + NUM_RESAMPLES] each.
    extract_s, predict_s, read_bytes = (
        num_due * np.concatenate([[row.mean()], row[draws].mean(axis=1)]) for row in figures
    )
    on_gpu = resources.gpus_per_predictor > 0
    return Estimate(
        num_pilot=pilot.num_rows,
        num_failed=pilot.num_rows - pilot["reason"].null_count,
        num_due=num_due,
        num_decoders=decoders,
        num_predictors=resources.num_predictors,
        wall_s=_range(np.maximum(extract_s / decoders, predict_s / resources.num_predictors)),
        read_bytes=_range(read_bytes),
        cpu_hours=_range((extract_s + (0 if on_gpu else predict_s)) / 3600),
        gpu_hours=_range(predict_s * resources.gpus_per_predictor / 3600),
        pilot_s=pilot_s,
    )


def _range(values: npt.NDArray[np.float64]) -> Range:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values[1:], [tail, 100 - tail])
    return Range(value=float(values[0]), low=float(low), high=float(high))


def print_estimate(cost: Estimate) -> None:
    """The estimate, one line a figure."""

    def line(name: str, figure: Range, scale: float, unit: str) -> str:
        value, low, high = (f"{number / scale:,.3g}" for number in (figure.value, figure.low, figure.high))
        return f"  {name:<10} {value} {unit} ({low} – {high})"

    minutes = cost.wall_s.value < 7200
    gigabytes = cost.read_bytes.value >= 1e9
    lines = [
        f"estimate for {cost.num_due:,} videos from {cost.num_pilot} drawn at random, of which {cost.num_failed} "
        f"failed; in brackets the {CONFIDENCE:.0%} interval",
        line("time", cost.wall_s, *((60, "min") if minutes else (3600, "h")))
        + f" with {cost.num_decoders} decoders and {cost.num_predictors} predictors",
        line("read", cost.read_bytes, *((1e9, "GB") if gigabytes else (1e6, "MB"))),
        line("CPU", cost.cpu_hours, 1, "hours"),
    ]
    if cost.gpu_hours.value:
        lines.append(line("GPU", cost.gpu_hours, 1, "hours"))
    console.print("\n".join(lines), highlight=False)
