"""The way of a video through Ray Data, from a list of videos to rows that arrive at the driver."""

import math
import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import pyarrow as pa
import ray.data
from pydantic import BaseModel, ConfigDict, Field
from ray.util.annotations import RayDeprecationWarning

from infra.storage import Storage
from ray_jobs.stages.extract import ExtractConfig, extract_stage
from ray_jobs.stages.predict import CarriedScorer, PredictStage, ShippedScorer


class Resources(BaseModel):
    """How much of the cluster a pipeline takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_predictors: int = Field(1, ge=1, description="actors that hold the scorers")
    gpus_per_predictor: float = Field(0.0, ge=0, description="GPUs of each; 0 predicts on CPUs")
    rows_per_block: int = Field(
        32, ge=1, description="videos per block: the unit of a decode task, of a retry and of a prediction"
    )

    def spread(self, num_videos: int, num_cpus: float) -> "Resources":
        """Smaller blocks for few videos, so that every CPU gets some: at least four blocks a CPU where possible."""
        fitting = max(1, math.ceil(num_videos / (4 * max(num_cpus, 1))))
        return self.model_copy(update={"rows_per_block": min(self.rows_per_block, fitting)})


def extracted(videos: ray.data.Dataset, config: ExtractConfig, resources: Resources) -> ray.data.Dataset:
    """Videos (``video_id, uri, etag, …``) to rows with crops: stages 1 and 2."""
    # 1. Small blocks, so that a lost node costs few videos and every CPU has work to the end.
    ds = videos.repartition(target_num_rows_per_block=resources.rows_per_block)
    # 2. Tasks, not actors: decoding scales to whatever CPUs are idle and survives a lost node block by block. 0.9 CPU
    #    differs from the predictors' request, so Ray does not fuse this stage into their actors.
    with warnings.catch_warnings():
        # Ray has no other way yet to say that a task which keeps losing its worker ends the run: by itself it is
        # retried for ever. The keyword goes away in Ray 2.64.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return ds.map_batches(extract_stage(config), batch_format="pyarrow", batch_size=1, num_cpus=0.9, max_retries=3)


def scored(
    videos: ray.data.Dataset,
    config: ExtractConfig,
    scorers: Sequence[ShippedScorer | CarriedScorer],
    resources: Resources,
) -> ray.data.Dataset:
    """Videos (``video_id, uri, etag, due_tasks, …``) to rows with one prediction column a task."""
    ds = extracted(videos, config, resources)
    # 3. Actors hold the models; a batch of rows is up to ten times as many crops. Crops are dropped here, so what
    #    travels to the driver is small.
    return ds.map_batches(
        PredictStage,
        fn_constructor_args=(scorers, Storage(config.storage), "cuda" if resources.gpus_per_predictor else "cpu"),
        batch_format="pyarrow",
        batch_size=resources.rows_per_block,
        compute=ray.data.ActorPoolStrategy(size=resources.num_predictors),
        num_cpus=1,
        num_gpus=resources.gpus_per_predictor or None,
    )


def arriving(ds: ray.data.Dataset) -> Iterator[pa.Table]:
    """Blocks of result rows, in the order in which they are done."""
    yield from ds.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


MAX_END_S = 5.0


class Arrivals:
    """Result rows from a thread of its own, so that the consumer can look at the clock and at signals in between.

    Iterating gives a table as soon as there is one, and None whenever ``poll_s`` have passed without. An error of the
    pipeline is raised where its rows would have come.
    """

    def __init__(self, ds: ray.data.Dataset, poll_s: float = 0.5) -> None:
        self._ds = ds
        self._poll_s = poll_s
        self._stop = threading.Event()
        # Small: what waits here is not committed yet, and Ray holds back the pipeline when nobody takes.
        self._queue: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=4)
        self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the pipeline, if it has not ended by itself, before anything shuts Ray down under it."""
        self._stop.set()
        # Ray has no public way to end a dataset's execution before its last row.
        executor = getattr(self._ds, "_current_executor", None)
        if executor is not None and self._thread.is_alive():  # None before the first block: nothing to end gently
            executor.shutdown(force=True)
            self._thread.join(MAX_END_S)

    def __iter__(self) -> Iterator[pa.Table | None]:
        while True:
            try:
                item = self._queue.get(timeout=self._poll_s)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            for rows in arriving(self._ds):
                self._put(rows)
                if self._stop.is_set():
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: pa.Table | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=self._poll_s)
                return
            except queue.Full:
                continue


def check_resources(resources: Resources, cluster: dict[str, float]) -> str | None:
    """Why the pipeline would hang on this cluster (actors take what readers need), or None."""
    cpus, gpus = cluster.get("CPU", 0), cluster.get("GPU", 0)
    if cpus < resources.num_predictors + 2:
        return (
            f"{resources.num_predictors} predictors need {resources.num_predictors + 2} logical CPUs, "
            f"the cluster has {cpus:g}: lower --predictors, or add nodes (locally: --num-cpus)"
        )
    if gpus < resources.num_predictors * resources.gpus_per_predictor:
        return (
            f"{resources.num_predictors} predictors × {resources.gpus_per_predictor:g} GPU need more than "
            f"the cluster's {gpus:g} GPUs: lower --predictors or --gpus-per-predictor"
        )
    return None
