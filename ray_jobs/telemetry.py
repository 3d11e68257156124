"""What jobs say of themselves while they run: metrics for Prometheus, through Ray, at the metrics port of each node."""

import time
from collections.abc import Callable, Iterable
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Counter, Gauge

from infra.settings import PriceSettings
from ray_jobs.planning import Plan
from ray_jobs.score_table import quarantine_reasons
from ray_jobs.sizing import DECODE_CPUS, PREDICT_CPUS, Resources

# A counter exists for Prometheus from its first increase, which is so never counted: this one changes no sum, and Ray
# takes no zero.
_NEXT_TO_NOTHING = 1e-9
STATUSES = ("scored", "no_face", "quarantined")
CROPS, NO_CROP = "crops", "no_crop"  # what becomes of a video that `prepare` could decode
LOOK_S = 10.0  # seconds between looks at the cluster; as often as Ray sends metrics


class Metrics:
    """The jobs' metrics; Prometheus sees them as ``ray_facereel_…``, counters with ``_total`` behind.

    Every process has its own series. Counters stay as long as its node; gauges are gone some seconds after the process.
    """

    def __init__(self) -> None:
        self.videos = Counter("facereel_score_videos", "Videos that arrived at the driver", ("status",))
        self.quarantined = Counter("facereel_score_quarantined", "Videos that could not be scored", ("reason",))
        self.read_bytes = Counter("facereel_score_read_bytes", "Bytes read from storage")
        self.busy_s = Counter("facereel_score_busy_seconds", "Seconds in a stage, summed up", ("stage", "device"))
        self.cost = Counter("facereel_score_cost", "Cost of what was reserved, in the prices' currency", ("resource",))
        self.slots = Gauge("facereel_score_slots", "Tasks or actors of a stage at once", ("run", "stage", "device"))
        self.waiting = Gauge("facereel_score_waiting", "Due videos that have not arrived", ("run",))
        self.uncommitted = Gauge("facereel_score_uncommitted", "Rows that wait for the next commit", ("run",))
        self.commit_lag_s = Gauge("facereel_score_commit_lag_seconds", "Age of the oldest such row", ("run",))
        self.backlog = Gauge("facereel_score_backlog", "Videos by state, when planned", ("run", "task", "state"))
        self.train_crops_per_s = Gauge("facereel_train_crops_per_s", "Crops a second, last epoch", ("run", "task"))
        self.train_wait_share = Gauge(
            "facereel_train_reader_wait_share", "Share of an epoch's time spent waiting for crops", ("run", "task")
        )
        self.train_loss = Gauge("facereel_train_loss", "Training loss, last epoch", ("run", "task"))
        self.train_epoch = Gauge("facereel_train_epoch", "Epochs that are done", ("run", "task"))
        self.prepare_videos = Counter(
            "facereel_prepare_videos", "Videos that were prepared, by what came out", ("state",)
        )
        self.prepare_crops = Counter("facereel_prepare_crops", "Crops that were staged")
        self.prepare_read_bytes = Counter("facereel_prepare_read_bytes", "Bytes read from storage for crops")
        self.ingest_addresses = Counter("facereel_ingest_addresses", "Addresses that ended, by state", ("state",))
        self.ingest_bytes = Counter("facereel_ingest_bytes", "Bytes of the videos that were fetched")


@cache
def metrics() -> Metrics:
    """This process's metrics: Ray wants each made once."""
    return Metrics()


class ScoreTelemetry:
    """A scoring run's metrics, told by its driver: it sees every row, and when what is committed.

    Args:
        run_id: of the run.
        plan: what it found.
        resources: what it reserves.
        num_decoders: tells how many decoding tasks run at once; asked again and again, since nodes come and go.
        prices: of CPUs, GPUs and reading.
    """

    def __init__(
        self, run_id: str, plan: Plan, resources: Resources, num_decoders: Callable[[], int], prices: PriceSettings
    ) -> None:
        self._run = {"run": run_id}
        self._resources, self._prices = resources, prices
        self._device = "cuda" if resources.gpus_per_predictor else "cpu"
        self._num_waiting = plan.num_due
        self._oldest_s: float | None = None  # when the oldest uncommitted row arrived
        self._told_s = self._looked_s = time.monotonic()
        self._num_decoders = num_decoders
        self._slots = {
            ("extract", "cpu"): num_decoders(),
            ("predict", self._device): resources.num_predictors,
        }
        self._backlog = plan.counts
        told = metrics()
        for stage, device in self._slots:
            told.busy_s.inc(_NEXT_TO_NOTHING, {"stage": stage, "device": device})
        for status in STATUSES:
            told.videos.inc(_NEXT_TO_NOTHING, {"status": status})
        for reason in quarantine_reasons():
            told.quarantined.inc(_NEXT_TO_NOTHING, {"reason": reason})
        told.read_bytes.inc(_NEXT_TO_NOTHING)

    def arrived(self, rows: pa.Table) -> None:
        """Rows came from the pipeline."""
        told = metrics()
        failed = pc.is_valid(rows["reason"])
        no_face = pc.equal(rows["num_faces"], 0)
        numbers = {
            "quarantined": _total(failed),
            "no_face": _total(no_face),
            "scored": rows.num_rows - _total(failed) - _total(no_face),
        }
        for status, number in numbers.items():
            _add(told.videos, number, {"status": status})
        for item in pc.value_counts(pc.drop_null(rows["reason"])).to_pylist():
            _add(told.quarantined, item["counts"], {"reason": item["values"]})
        num_bytes, extract_s, predict_s = (_total(rows[name]) for name in ("fetched_bytes", "extract_s", "predict_s"))
        _add(told.read_bytes, num_bytes)
        _add(told.busy_s, extract_s, {"stage": "extract", "device": "cpu"})
        _add(told.busy_s, predict_s, {"stage": "predict", "device": self._device})
        _add(told.cost, extract_s / 3600 * DECODE_CPUS * self._prices.cpu_hour, {"resource": "cpu"})
        _add(told.cost, num_bytes / 1e9 * self._prices.read_gb, {"resource": "read"})
        self._num_waiting -= rows.num_rows
        if self._oldest_s is None:
            self._oldest_s = time.monotonic()

    def tick(self, num_uncommitted: int) -> None:
        """Say how far the run is; to be called again and again, since Ray forgets a gauge that is not set."""
        told, now = metrics(), time.monotonic()
        if not num_uncommitted:
            self._oldest_s = None
        if now - self._looked_s >= LOOK_S:
            self._looked_s = now
            self._slots["extract", "cpu"] = self._num_decoders()
        for (stage, device), number in self._slots.items():
            told.slots.set(number, self._run | {"stage": stage, "device": device})
        for task, counts in self._backlog.items():
            for state, number in counts.items():
                told.backlog.set(number, self._run | {"task": task, "state": state})
        told.waiting.set(self._num_waiting, self._run)
        told.uncommitted.set(num_uncommitted, self._run)
        told.commit_lag_s.set(0.0 if self._oldest_s is None else now - self._oldest_s, self._run)
        # Actors are reserved from the first to the last row, busy or not; decode tasks only while they run.
        hours, self._told_s = (now - self._told_s) / 3600 * self._resources.num_predictors, now
        _add(told.cost, hours * PREDICT_CPUS * self._prices.cpu_hour, {"resource": "cpu"})
        _add(told.cost, hours * self._resources.gpus_per_predictor * self._prices.gpu_hour, {"resource": "gpu"})


def tell_training(run: str, task: str, loss: float, crops_per_s: float, wait_share: float, num_epochs: int) -> None:
    """Figures of a training's last epoch; to be called again and again, since Ray forgets a gauge that is not set."""
    told, tags = metrics(), {"run": run, "task": task}
    told.train_loss.set(loss, tags)
    told.train_crops_per_s.set(crops_per_s, tags)
    told.train_wait_share.set(wait_share, tags)
    told.train_epoch.set(num_epochs, tags)


def begin_preparing() -> None:
    """Make the counters of `prepare` known, before anything is counted."""
    told = metrics()
    for state in (CROPS, NO_CROP, *quarantine_reasons()):
        told.prepare_videos.inc(_NEXT_TO_NOTHING, {"state": state})
    told.prepare_crops.inc(_NEXT_TO_NOTHING)
    told.prepare_read_bytes.inc(_NEXT_TO_NOTHING)


def tell_prepared(rows: pa.Table) -> None:
    """Rows of the encoding stage, one a crop or one for a video without: ``face``, ``reason``, ``fetched_bytes``."""
    told = metrics()
    videos = rows.filter(pc.fill_null(pc.equal(rows["face"], 0), True))  # the first row of each
    states = pc.coalesce(videos["reason"], pc.if_else(pc.is_null(videos["face"]), NO_CROP, CROPS))
    for item in pc.value_counts(states).to_pylist():
        _add(told.prepare_videos, item["counts"], {"state": item["values"]})
    _add(told.prepare_crops, rows.num_rows - rows["face"].null_count)
    _add(told.prepare_read_bytes, _total(videos["fetched_bytes"]))


def begin_ingesting(states: Iterable[str]) -> None:
    """Make the counters of `ingest` known, before anything is counted."""
    told = metrics()
    for state in states:
        told.ingest_addresses.inc(_NEXT_TO_NOTHING, {"state": state})
    told.ingest_bytes.inc(_NEXT_TO_NOTHING)


def tell_ingested(state: str, num_bytes: int) -> None:
    """An address has ended: ``fetched`` with so many bytes, or with the reason why not."""
    told = metrics()
    told.ingest_addresses.inc(1, {"state": state})
    _add(told.ingest_bytes, num_bytes)


def _add(counter: Counter, value: float, tags: dict[str, str] | None = None) -> None:
    if value > 0:
        counter.inc(value, tags or {})


def _total(values: pa.ChunkedArray | Iterable[float]) -> float:
    return pc.sum(values).as_py() or 0
