"""What jobs tell: counts, seconds, lag and cost, from the rows that their drivers see."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pyarrow as pa
import pytest

import ray_jobs.telemetry as telemetry
from infra.settings import PriceSettings
from ray_jobs.score_table import quarantine_reasons
from ray_jobs.sizing import Resources
from ray_jobs.telemetry import ScoreTelemetry, begin_ingesting, begin_preparing, tell_ingested, tell_prepared

Told = dict[tuple[str, ...], float]


@dataclass
class Recorder:
    """A metric that remembers: sums of increases, or the last value."""

    told: Told = field(default_factory=lambda: defaultdict(float))

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value > 0, "Ray takes no zero"
        self.told[tuple((tags or {}).values())] += value

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.told[tuple((tags or {}).values())] = value


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Told]:
    recorders = {name: Recorder() for name in vars(telemetry.metrics())}
    monkeypatch.setattr(telemetry, "metrics", lambda: SimpleNamespace(**recorders))
    return {name: recorder.told for name, recorder in recorders.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(telemetry, "time", found)
    return found


def run_of(
    num_due: int = 4, prices: PriceSettings | None = None, decoders: Callable[[], int] = lambda: 10, **resources: float
) -> ScoreTelemetry:
    plan = SimpleNamespace(num_due=num_due, counts={"fs2k": {"new": 3, "stale_scorer": 1, "done": 6}})
    return ScoreTelemetry("run-1", plan, Resources.model_validate(resources), decoders, prices or PriceSettings())


def rows(*reasons: str | None, num_faces: int = 1) -> pa.Table:
    failed = [reason is not None for reason in reasons]
    return pa.table(
        {
            "reason": pa.array(reasons, pa.string()),
            "num_faces": pa.array([None if bad else num_faces for bad in failed], pa.int32()),
            "fetched_bytes": pa.array([None if bad else 500_000_000 for bad in failed], pa.int64()),
            "extract_s": pa.array([1800.0] * len(reasons), pa.float32()),
            "predict_s": pa.array([0.5] * len(reasons), pa.float32()),
        }
    )


def test_every_row_is_counted_in_one_status(told: dict[str, Told], clock: Clock) -> None:
    run = run_of()
    run.arrived(rows(None, "corrupt", None, "corrupt", "timeout"))
    run.arrived(rows(None, num_faces=0))
    assert told["videos"] == pytest.approx({("scored",): 2, ("no_face",): 1, ("quarantined",): 3})
    assert {key: round(value) for key, value in told["quarantined"].items() if value > 0.5} == {
        ("corrupt",): 2,
        ("timeout",): 1,
    }
    assert told["read_bytes"][()] == pytest.approx(1.5e9)
    assert told["busy_s"] == pytest.approx({("extract", "cpu"): 6 * 1800, ("predict", "cpu"): 3})


def test_series_exist_before_their_first_event(told: dict[str, Told], clock: Clock) -> None:
    run_of(gpus_per_predictor=0.5)
    assert set(told["videos"]) == {("scored",), ("no_face",), ("quarantined",)}
    assert set(told["busy_s"]) == {("extract", "cpu"), ("predict", "cuda")}
    assert {(reason,) for reason in quarantine_reasons()} == set(told["quarantined"])
    assert sum(told["videos"].values()) + sum(told["quarantined"].values()) < 1e-6


def test_gauges_say_the_queue_and_the_plan(told: dict[str, Told], clock: Clock) -> None:
    run = run_of(num_predictors=1)
    run.tick(0)
    assert told["waiting"] == {("run-1",): 4}
    assert told["slots"] == {("run-1", "extract", "cpu"): 10, ("run-1", "predict", "cpu"): 1}
    assert told["backlog"][("run-1", "fs2k", "stale_scorer")] == 1
    run.arrived(rows(None, None))
    run.tick(2)
    assert told["waiting"] == {("run-1",): 2}
    assert told["uncommitted"] == {("run-1",): 2}


def test_slots_follow_nodes_that_come_and_go(told: dict[str, Told], clock: Clock) -> None:
    offered = [1, 32, 16]
    run = run_of(decoders=lambda: offered.pop(0))
    for after_s, number in [(0, 1), (9, 1), (1, 32), (10, 16)]:
        clock.now += after_s
        run.tick(0)
        assert told["slots"]["run-1", "extract", "cpu"] == number


def test_lag_is_the_age_of_the_oldest_row_that_is_not_committed(told: dict[str, Told], clock: Clock) -> None:
    run = run_of()
    lag = told["commit_lag_s"]
    run.tick(0)
    assert lag[("run-1",)] == 0
    run.arrived(rows(None))
    clock.now += 7
    run.arrived(rows(None))
    run.tick(2)
    assert lag[("run-1",)] == 7
    run.tick(0)  # committed
    assert lag[("run-1",)] == 0
    clock.now += 5
    run.arrived(rows(None))
    clock.now += 2
    run.tick(1)
    assert lag[("run-1",)] == 2


def test_cost_is_of_what_is_reserved(told: dict[str, Told], clock: Clock) -> None:
    prices = PriceSettings(cpu_hour=2, gpu_hour=10, read_gb=0.1)
    run = run_of(prices=prices, num_predictors=4, gpus_per_predictor=0.25)
    run.arrived(rows(None, None))  # two tasks of half an hour each, 0.9 CPU; 1e9 bytes
    clock.now += 3600  # four predictors for an hour, each a CPU and a quarter of a GPU
    run.tick(2)
    assert told["cost"] == pytest.approx({("cpu",): 2 * (0.9 + 4), ("gpu",): 10, ("read",): 0.1})


def test_without_prices_nothing_costs(told: dict[str, Told], clock: Clock) -> None:
    run = run_of()
    run.arrived(rows(None))
    clock.now += 3600
    run.tick(1)
    assert told["cost"] == {}


def test_every_prepared_video_is_counted_once_by_what_came_out(told: dict[str, Told]) -> None:
    begin_preparing()
    assert {(state,) for state in (*quarantine_reasons(), "crops", "no_crop")} == set(told["prepare_videos"])
    assert sum(told["prepare_videos"].values()) < 1e-6
    rows = [  # two crops, one, none, and two that failed
        (0, None, 500),
        (1, None, 500),
        (0, None, 70),
        (None, None, 8),
        (None, "corrupt", None),
        (None, "not_found", None),
    ]
    faces, reasons, sizes = zip(*rows, strict=True)
    tell_prepared(
        pa.table(
            {
                "face": pa.array(faces, pa.int32()),
                "reason": pa.array(reasons, pa.string()),
                "fetched_bytes": pa.array(sizes, pa.int64()),
            }
        )
    )
    counted = {state: round(value) for (state,), value in told["prepare_videos"].items() if value > 0.5}
    assert counted == {"crops": 2, "no_crop": 1, "corrupt": 1, "not_found": 1}
    assert told["prepare_crops"][()] == pytest.approx(3)
    assert told["prepare_read_bytes"][()] == pytest.approx(578)


def test_every_address_is_counted_by_how_it_ended(told: dict[str, Told]) -> None:
    begin_ingesting(["fetched", "deleted"])
    tell_ingested("fetched", 1000)
    tell_ingested("fetched", 0)
    tell_ingested("deleted", 0)
    assert told["ingest_addresses"] == pytest.approx({("fetched",): 2, ("deleted",): 1})
    assert told["ingest_bytes"][()] == pytest.approx(1000)
