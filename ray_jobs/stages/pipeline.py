"""The way of a video through Ray Data, from a list of videos to rows that arrive at the driver."""

import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import pyarrow as pa
import ray.data
from ray.util.annotations import RayDeprecationWarning

from infra.storage import Storage
from ray_jobs.sizing import DECODE_CPUS, DECODE_MEMORY_BYTES, PREDICT_CPUS, PREDICT_MEMORY_BYTES, STEADY, Resources
from ray_jobs.stages.extract import ExtractConfig, extract_stage
from ray_jobs.stages.predict import CarriedScorer, PredictStage, ShippedScorer


def extracted(videos: ray.data.Dataset, config: ExtractConfig, resources: Resources) -> ray.data.Dataset:
    """Videos (``video_id, uri, etag, …``) to rows with crops: stages 1 and 2."""
    # 1. Small blocks, so that a lost node costs few videos and every CPU has work to the end.
    ds = videos.repartition(target_num_rows_per_block=resources.rows_per_block)
    # 2. Tasks, not actors: decoding scales to whatever CPUs are idle, on nodes that join as well, and survives a lost
    #    node block by block; so it alone may run on spot nodes. Its CPUs differ from the predictors' request, so Ray
    #    does not fuse this stage into their actors.
    with warnings.catch_warnings():
        # Ray has no other way yet to say that a task which keeps losing its worker ends the run: by itself it is
        # retried for ever. The keyword goes away in Ray 2.64.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return ds.map_batches(
            extract_stage(config),
            batch_format="pyarrow",
            batch_size=1,
            num_cpus=DECODE_CPUS,
            memory=DECODE_MEMORY_BYTES,
            resources={resources.decode_resource: 1} if resources.decode_resource else None,
            max_retries=3,
        )


def scored(
    videos: ray.data.Dataset,
    config: ExtractConfig,
    scorers: Sequence[ShippedScorer | CarriedScorer],
    resources: Resources,
) -> ray.data.Dataset:
    """Videos (``video_id, uri, etag, due_tasks, …``) to rows with one prediction column a task."""
    ds = extracted(videos, config, resources)
    # 3. Actors hold the models; a batch of rows is up to ten times as many crops. Crops are dropped here, so what
    #    travels to the driver is small. Of a fixed size, so that decoders always find CPUs; not on spot nodes, where a
    #    lost actor would take its loaded scorers and its batch along.
    return ds.map_batches(
        PredictStage,
        fn_constructor_args=(scorers, Storage(config.storage), "cuda" if resources.gpus_per_predictor else "cpu"),
        batch_format="pyarrow",
        batch_size=resources.rows_per_block,
        compute=ray.data.ActorPoolStrategy(size=resources.num_predictors),
        num_cpus=PREDICT_CPUS,
        num_gpus=resources.gpus_per_predictor or None,
        memory=PREDICT_MEMORY_BYTES,
        label_selector=STEADY,
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
