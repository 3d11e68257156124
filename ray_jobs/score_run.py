"""The work of one scoring run: its due list through the pipeline into commits, until it is done or has to stop."""

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
import ray.data

from infra.errors import RunStopped
from infra.leases import Lease
from infra.settings import Settings
from infra.storage import Storage, join
from models.registry import ResolvedScorer
from ray_jobs.cluster import look
from ray_jobs.console import RunProgress
from ray_jobs.failure_guard import FailureGuard
from ray_jobs.interrupts import Interrupts
from ray_jobs.planning import Plan
from ray_jobs.room_watch import RoomWatch
from ray_jobs.run_record import RunRecord, remove_due_list, run_folder, write_record
from ray_jobs.score_config import ScoreConfig, extract_config
from ray_jobs.sizing import Resources, num_decoders
from ray_jobs.stages.pipeline import Arrivals, scored
from ray_jobs.stages.predict import ShippedScorer
from ray_jobs.stages.sink import ScoreSink
from ray_jobs.telemetry import ScoreTelemetry

# While a dataset is executed Ray Data keeps the statistics of all its blocks: in one, a hundred million videos would
# fill the driver's memory. Five million (`DUE_ROWS_PER_FILE` a file) are most of an hour on a thousand CPUs, so that
# starting the predictors anew costs little.
FILES_PER_DATASET = 100


def due_datasets(due: str, storage: Storage) -> Iterator[ray.data.Dataset]:
    """The files of a due list in their order, `FILES_PER_DATASET` at a time."""
    names = [stat.uri.rsplit("/", 1)[1] for stat in storage.list_prefix(due)]
    names.sort(key=lambda name: (len(name), name))  # part-2 before part-10
    for start in range(0, len(names), FILES_PER_DATASET):
        filesystem, folder = storage.arrow_filesystem(due)  # anew: the credentials of a role expire
        paths = [f"{folder}/{name}" for name in names[start : start + FILES_PER_DATASET]]
        # Without a partitioning of its own, Ray would take `date=…` in the tables' path for a column.
        yield ray.data.read_parquet(paths, filesystem=filesystem, partitioning=None)


def in_turn(datasets: Iterable[ray.data.Dataset]) -> Generator[pa.Table | None]:
    """What arrives of each dataset, one after the other."""
    for ds in datasets:
        with Arrivals(ds) as arrivals:
            yield from arrivals


@dataclass(slots=True)
class ScoreRun:
    """One run from its due list to its account."""

    config: ScoreConfig
    settings: Settings
    storage: Storage
    record: RunRecord
    sink: ScoreSink
    lease: Lease

    def score(
        self, plan: Plan, resolved: dict[str, ResolvedScorer], resources: Resources, interrupts: Interrupts
    ) -> None:
        """Run the pipeline; the run's record says how it ended, whatever happens."""
        tables, run_id = self.config.tables, self.record.run_id
        try:
            self._note()
            scorers = [
                ShippedScorer.ship(found.directory, task, found.scorer.digest, tables, self.storage)
                for task, found in resolved.items()
            ]
            due = join(run_folder(tables, run_id), "due")
            plan.write_due(due, self.storage)
            plan.close()
            extract = extract_config(self.config, resolved, self.settings)
            videos = due_datasets(due, self.storage)
            telemetry = ScoreTelemetry(
                run_id, plan, resources, lambda: max(1, num_decoders(resources, look())), self.settings.prices
            )
            datasets = (scored(part, extract, scorers, resources) for part in videos)
            self._take(datasets, interrupts, telemetry, RoomWatch(resources))
            if self.sink.outcome.done != self.record.num_due:
                raise RuntimeError(
                    f"run {run_id}: the plan had {self.record.num_due} videos due, {self.sink.outcome.done} were "
                    "committed; what is missing is due again in the next run"
                )
            self._note(state="done")
        except RunStopped:
            self._note(state="stopped")
            raise
        except BaseException as error:
            self._note(state="failed", message=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
            raise
        finally:
            remove_due_list(tables, run_id, self.storage)

    def _take(
        self, datasets: Iterable[ray.data.Dataset], interrupts: Interrupts, telemetry: ScoreTelemetry, room: RoomWatch
    ) -> None:
        guard = FailureGuard(self.config.failures)
        # Closed when this stops early, so that the pipeline has ended before Ray is shut down.
        with closing(in_turn(datasets)) as arrivals, RunProgress("score", self.record.num_due) as progress:
            for rows in arrivals:
                if rows is not None:
                    room.arrived()
                    guard.add(rows["reason"].to_pylist())
                    self.sink.add(rows)
                    telemetry.arrived(rows)
                    progress.update(guard.num_videos, f"{guard.reasons.total()} quarantined")
                if guard.all_failed_alike:
                    raise self._stopped(
                        f"the first {guard.num_videos} videos all failed for one reason: {guard.all_failed_alike} "
                        f"({_message(rows)}); nothing of them is committed. Mend it and run again "
                        "(--fail-first 0 goes on regardless)"
                    )
                if not guard.holds_back and self.sink.tick():
                    self._note()
                telemetry.tick(self.sink.num_pending)
                if guard.is_over:
                    if not guard.holds_back:
                        self._commit()
                    raise self._stopped(
                        f"{guard.reasons.total()} of {guard.num_videos} videos failed "
                        f"({spoken_reasons(guard.reasons)}), more than --max-failure-rate "
                        f"{self.config.failures.max_rate:g} allows"
                    )
                if (trouble := room.trouble()) is not None:
                    if not guard.holds_back:
                        self._commit()
                    raise self._stopped(trouble)
                if interrupts.received is not None:
                    if not guard.holds_back:
                        self._commit()
                    raise self._stopped(f"stopped by {interrupts.received.name}", 128 + interrupts.received)
            self._commit()
            telemetry.tick(self.sink.num_pending)

    def _commit(self) -> None:
        self.sink.commit()
        self._note()

    def _stopped(self, why: str, exit_code: int = 3) -> RunStopped:
        """Say at once how to go on, and let go of the lease: whoever sent the signal may not wait for the pipeline."""
        done, due = self.sink.outcome.done, self.record.num_due
        message = (
            f"run {self.record.run_id}: {why}. {done} of {due} due videos are committed; go on with: "
            f"{self.config.command or 'the same command'}"
        )
        print(f"stopped: {message}", file=sys.stderr, flush=True)
        self.record.message = why
        self.lease.release()
        return RunStopped(message, exit_code)

    def _note(self, **changes: str) -> None:
        """Write the run's record as of now."""
        self.record.outcome = self.sink.outcome
        for name, value in changes.items():
            setattr(self.record, name, value)
        write_record(self.config.tables, self.record, self.storage)


def spoken_reasons(reasons: dict[str, int]) -> str:
    """Numbers and reasons, the most frequent first."""
    return ", ".join(f"{num} {reason}" for reason, num in sorted(reasons.items(), key=lambda item: -item[1]))


def _message(rows: pa.Table | None) -> str:
    """One of the failures in its own words."""
    messages = [] if rows is None else rows["message"].drop_null().to_pylist()
    return messages[-1] if messages else "no message"
