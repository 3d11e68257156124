"""Score a catalog: plan, take the lease, run what is due, account for every video."""

import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from infra.leases import Lease
from infra.settings import Settings
from infra.storage import Storage
from infra.tables import DeltaStore
from ray_jobs.cluster import fit, named_address
from ray_jobs.console import console, print_plan
from ray_jobs.interrupts import Interrupts
from ray_jobs.outcome import Outcome
from ray_jobs.planning import Plan
from ray_jobs.pools import spoken
from ray_jobs.preflight import refuse_unwritable
from ray_jobs.run_record import RunRecord
from ray_jobs.score_config import ScoreConfig, plan_run, policy_of, resolve_scorers
from ray_jobs.score_run import ScoreRun, spoken_reasons
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.stages.sink import QUARANTINE_SCHEMA, ScoreSink, SinkConfig, check_columns, score_schema


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """What a run did; ``outcome`` is None when nothing was due."""

    run_id: str
    plan: Plan
    outcome: Outcome | None
    wall_s: float


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
    refuse_unwritable(storage, "--tables", config.tables)
    resolved = resolve_scorers(config.scorers, settings)
    if named_address(settings.cluster):  # what a cluster lacks is said before the plan, which may take minutes
        fit(config.resources, settings.cluster)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    plan = plan_run(config, resolved, settings)
    try:
        print_plan(plan)
        if plan.num_due == 0:
            return ScoreResult(run_id, plan, None, time.monotonic() - start)
        resources, cluster = fit(config.resources, settings.cluster)
        console.print(spoken(resources, cluster), highlight=False)
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
            run = ScoreRun(config, settings, storage, record, sink, lease)
            run.score(plan, resolved, resources.spread(plan.num_due, cluster.num_cpus_now), interrupts)
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


def print_result(result: ScoreResult) -> None:
    """The final account of a run, one line a fact."""
    outcome = result.outcome
    if outcome is None:
        console.print("nothing to do: no video of the catalog is due")
        return
    console.print(
        f"run {result.run_id}: {outcome.done} of {result.plan.num_due} due videos accounted for "
        f"in {result.wall_s:.0f} s\n"
        f"  scored       {outcome.scored} videos, {outcome.num_faces} faces\n"
        f"  no_face      {outcome.no_face}\n"
        f"  quarantined  {outcome.quarantined.total()} ({spoken_reasons(outcome.quarantined) or 'none'})\n"
        f"  read         {outcome.fetched_bytes / 1e6:.1f} MB in {outcome.num_commits} commits",
        highlight=False,
    )
