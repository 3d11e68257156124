"""Score a catalog: plan, run the pipeline over what is due, commit, account for every video."""

import secrets
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa
import ray
import ray.data

from infra.errors import RunStopped, UserError
from infra.leases import TTL_S, Lease
from infra.settings import Settings
from infra.storage import Storage, join
from infra.tables import DeltaStore
from infra.tracking import tracking_client
from models.registry import CHAMPION, ResolvedScorer, resolve, tasks_with
from models.video.limits import DecodeLimits
from ray_jobs.cluster import connect
from ray_jobs.console import RunProgress, console, print_plan
from ray_jobs.failure_guard import FailureGuard, FailureLimits
from ray_jobs.interrupts import Interrupts
from ray_jobs.outcome import Outcome
from ray_jobs.planning import Content, Plan, make_plan
from ray_jobs.run_record import RunRecord, remove_due_list, run_folder, write_record
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.stages.extract import ExtractConfig, policy_digest
from ray_jobs.stages.pipeline import Arrivals, Resources, check_resources, scored
from ray_jobs.stages.predict import ShippedScorer
from ray_jobs.stages.sink import (
    QUARANTINE_SCHEMA,
    ScoreSink,
    SinkConfig,
    check_columns,
    reserved_columns,
    score_schema,
)


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """One scoring run."""

    catalog: str
    tables: str
    scorers: dict[str, str]  # task -> scorer reference; empty: every task that has a champion
    retry: frozenset[str] = frozenset()
    content: Content = "etag"
    opt_out: str | None = None
    resources: Resources = field(default_factory=Resources)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    failures: FailureLimits = field(default_factory=FailureLimits)
    max_tries: int = 3
    commit_every_s: float = 30.0
    commit_every_rows: int = 10_000
    with_faces: bool = True
    lease_ttl_s: float = TTL_S
    command: str = ""  # what the user typed, to go on with after a stop


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """What a run did; ``outcome`` is None when nothing was due."""

    run_id: str
    plan: Plan
    outcome: Outcome | None
    wall_s: float


def resolve_scorers(scorers: dict[str, str], settings: Settings) -> dict[str, ResolvedScorer]:
    """Load and check the scorers of a run.

    Raises:
        UserError: One does not exist, or they were trained on different crops, so that one decode cannot serve them.
    """
    client = tracking_client(settings.tracking)
    if not scorers:
        scorers = dict.fromkeys(tasks_with(client, CHAMPION), CHAMPION)
    if not scorers:
        raise UserError(
            f"no task has a champion in the registry {client.tracking_uri}: "
            "train and promote one, or give --scorer TASK=DIR"
        )
    resolved = {task: resolve(client, reference, task=task) for task, reference in scorers.items()}
    policies = {(s.scorer.manifest.frame_policy, s.scorer.manifest.face_policy) for s in resolved.values()}
    if len(policies) > 1:
        raise UserError(
            f"the scorers of {' and '.join(resolved)} were trained with different frame or face policies, so they need "
            "different crops: score them in separate runs (--task)"
        )
    return resolved


def policy_of(resolved: dict[str, ResolvedScorer]) -> str:
    """Digest of the frame and face policy that all scorers of a run share."""
    manifest = next(iter(resolved.values())).scorer.manifest
    return policy_digest(manifest.frame_policy, manifest.face_policy)


def plan_run(config: ScoreConfig, resolved: dict[str, ResolvedScorer], settings: Settings) -> Plan:
    """The plan of a run; close it."""
    return make_plan(
        config.catalog,
        config.tables,
        policy=policy_of(resolved),
        scorers={task: found.scorer.digest for task, found in resolved.items()},
        settings=settings,
        retry=config.retry,
        content=config.content,
        opt_out=config.opt_out,
        reserved=reserved_columns(list(resolved)),
    )


def extract_config(config: ScoreConfig, resolved: dict[str, ResolvedScorer], settings: Settings) -> ExtractConfig:
    """How the run's videos become crops."""
    manifest = next(iter(resolved.values())).scorer.manifest
    return ExtractConfig(
        frame_policy=manifest.frame_policy,
        face_policy=manifest.face_policy,
        limits=config.limits,
        storage=settings.storage,
        with_digest=config.content == "sha256",
        max_tries=config.max_tries,
    )


def run_score(config: ScoreConfig, settings: Settings) -> ScoreResult:
    """Score what is due and commit it; a crash loses only what was not committed, and the next run does that.

    Raises:
        UserError: Catalog, scorer, storage or cluster are not usable, or another run writes there; nothing was written.
        RunStopped: Too much failed, or a signal came; what was committed stays.
        TypedError: A table cannot be written; what was committed stays.
        RuntimeError: The run's sums differ from the plan.
    """
    start = time.monotonic()
    storage = Storage(settings.storage)
    config = replace(config, tables=storage.absolute(config.tables))  # workers run in directories of their own
    resolved = resolve_scorers(config.scorers, settings)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    plan = plan_run(config, resolved, settings)
    try:
        print_plan(plan)
        if plan.num_due == 0:
            return ScoreResult(run_id, plan, None, time.monotonic() - start)
        cluster = connect(settings.cluster)
        refusal = check_resources(config.resources, cluster)
        if refusal:
            raise UserError(refusal)
        store = DeltaStore(config.tables, storage)
        with (
            Interrupts() as interrupts,
            Lease(
                storage,
                config.tables,
                f"run {run_id}, scoring {config.catalog}",
                ttl_s=config.lease_ttl_s,
                after=max(store.epoch(name) for name in plan.versions),
            ) as lease,
        ):
            store = store.with_epoch(lease.epoch)
            if not _fence(store, plan):
                console.print("the tables have changed since the plan was made: planning again")
                plan.close()
                plan = plan_run(config, resolved, settings)
                print_plan(plan)
                if plan.num_due == 0:
                    return ScoreResult(run_id, plan, None, time.monotonic() - start)
            record = RunRecord(
                run_id=run_id,
                catalog=config.catalog,
                command=config.command,
                policy=policy_of(resolved),
                scorers={task: (found.scorer.digest, found.version) for task, found in resolved.items()},
                epoch=lease.epoch,
                num_due=plan.num_due,
            )
            check_columns(config.catalog, plan.due_schema(), store, list(resolved))
            sink = ScoreSink(store, _sink_config(config, record), lease.check)
            run = _Run(config, settings, storage, record, sink, lease)
            run.score(plan, resolved, cluster["CPU"], interrupts)
    finally:
        plan.close()
    return ScoreResult(run_id, plan, run.sink.outcome, time.monotonic() - start)


def _fence(store: DeltaStore, plan: Plan) -> bool:
    """Shut out earlier writers from every table of the run; whether the tables are still those of the plan."""
    for name in plan.versions:
        task = name.removeprefix(score_table(""))
        store.fence(name, QUARANTINE_SCHEMA if name == QUARANTINE else score_schema(task))
    return all(store.version(name) == (-1 if seen is None else seen) + 1 for name, seen in plan.versions.items())


def _sink_config(config: ScoreConfig, record: RunRecord) -> SinkConfig:
    return SinkConfig(
        run_id=record.run_id,
        policy=record.policy,
        scorers=record.scorers,
        commit_every_s=config.commit_every_s,
        commit_every_rows=config.commit_every_rows,
        with_faces=config.with_faces,
    )


@dataclass(slots=True)
class _Run:
    """One run from its due list to its account."""

    config: ScoreConfig
    settings: Settings
    storage: Storage
    record: RunRecord
    sink: ScoreSink
    lease: Lease

    def score(self, plan: Plan, resolved: dict[str, ResolvedScorer], num_cpus: float, interrupts: Interrupts) -> None:
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
            filesystem, path = self.storage.arrow_filesystem(due)
            ds = scored(
                # Without a partitioning of its own, Ray would take `date=…` in the tables' path for a column.
                ray.data.read_parquet(path, filesystem=filesystem, partitioning=None),
                extract_config(self.config, resolved, self.settings),
                scorers,
                self.config.resources.spread(self.record.num_due, num_cpus),
            )
            self._take(ds, interrupts)
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

    def _take(self, ds: ray.data.Dataset, interrupts: Interrupts) -> None:
        guard = FailureGuard(self.config.failures)
        with Arrivals(ds) as arrivals, RunProgress("score", self.record.num_due) as progress:
            for rows in arrivals:
                if rows is not None:
                    guard.add(rows["reason"].to_pylist())
                    self.sink.add(rows)
                    progress.update(guard.num_videos, f"{guard.reasons.total()} quarantined")
                if guard.all_failed_alike:
                    raise self._stopped(
                        f"the first {guard.num_videos} videos all failed for one reason: {guard.all_failed_alike} "
                        f"({_message(rows)}); nothing of them is committed. Mend it and run again "
                        "(--fail-first 0 goes on regardless)"
                    )
                if not guard.holds_back and self.sink.tick():
                    self._note()
                if guard.is_over:
                    if not guard.holds_back:
                        self._commit()
                    raise self._stopped(
                        f"{guard.reasons.total()} of {guard.num_videos} videos failed ({_reasons(guard.reasons)}), "
                        f"more than --max-failure-rate {self.config.failures.max_rate:g} allows"
                    )
                if interrupts.received is not None:
                    if not guard.holds_back:
                        self._commit()
                    raise self._stopped(f"stopped by {interrupts.received.name}", 128 + interrupts.received)
            self._commit()

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


def _reasons(reasons: dict[str, int]) -> str:
    return ", ".join(f"{num} {reason}" for reason, num in sorted(reasons.items(), key=lambda item: -item[1]))


def _message(rows: pa.Table | None) -> str:
    """One of the failures in its own words."""
    messages = [] if rows is None else rows["message"].drop_null().to_pylist()
    return messages[-1] if messages else "no message"


def print_result(result: ScoreResult) -> None:
    """The final account of a run, one line a fact."""
    outcome = result.outcome
    if outcome is None:
        console.print("nothing to do: every video of the catalog is done, quarantined or excluded")
        return
    console.print(
        f"run {result.run_id}: {outcome.done} of {result.plan.num_due} due videos accounted for "
        f"in {result.wall_s:.0f} s\n"
        f"  scored       {outcome.scored} videos, {outcome.num_faces} faces\n"
        f"  no_face      {outcome.no_face}\n"
        f"  quarantined  {outcome.quarantined.total()} ({_reasons(outcome.quarantined) or 'none'})\n"
        f"  read         {outcome.fetched_bytes / 1e6:.1f} MB in {outcome.num_commits} commits",
        highlight=False,
    )
