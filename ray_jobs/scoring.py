"""Score a catalog: plan, run the pipeline over what is due, commit, account for every video."""

import io
import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pyarrow.parquet as pq
import ray
import ray.data

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import Storage, join
from infra.tables import DeltaStore
from infra.tracking import tracking_client
from models.registry import CHAMPION, ResolvedScorer, resolve, tasks_with
from models.video.limits import DecodeLimits
from ray_jobs.cluster import connect
from ray_jobs.console import RunProgress, console, print_plan
from ray_jobs.planning import Plan, make_plan
from ray_jobs.stages.extract import ExtractConfig, policy_digest
from ray_jobs.stages.pipeline import Resources, arriving, check_resources, scored
from ray_jobs.stages.predict import ShippedScorer
from ray_jobs.stages.sink import Outcome, ScoreSink, SinkConfig


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """One scoring run."""

    catalog: str
    tables: str
    scorers: dict[str, str]  # task -> scorer reference; empty: every task that has a champion
    retry: frozenset[str] = frozenset()
    resources: Resources = field(default_factory=Resources)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    commit_every_s: float = 30.0
    commit_every_rows: int = 10_000


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


def plan_run(config: ScoreConfig, resolved: dict[str, ResolvedScorer], settings: Settings) -> Plan:
    """The plan of a run."""
    manifest = next(iter(resolved.values())).scorer.manifest
    return make_plan(
        config.catalog,
        config.tables,
        policy=policy_digest(manifest.frame_policy, manifest.face_policy),
        scorers={task: found.scorer.digest for task, found in resolved.items()},
        settings=settings,
        retry=config.retry,
    )


def run_score(config: ScoreConfig, settings: Settings) -> ScoreResult:
    """Score what is due and commit it; a crash loses only what was not committed, and the next run does that.

    Raises:
        UserError: Catalog, scorer, storage or cluster are not usable; nothing was written.
        RuntimeError: The run's sums differ from the plan.
    """
    start = time.monotonic()
    storage = Storage(settings.storage)
    config = replace(config, tables=storage.absolute(config.tables))  # workers run in directories of their own
    resolved = resolve_scorers(config.scorers, settings)
    plan = plan_run(config, resolved, settings)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    print_plan(plan)
    if plan.num_due == 0:
        return ScoreResult(run_id, plan, None, time.monotonic() - start)
    cluster = connect(settings.cluster)
    refusal = check_resources(config.resources, cluster)
    if refusal:
        raise UserError(refusal)

    manifest = next(iter(resolved.values())).scorer.manifest
    extract = ExtractConfig(
        frame_policy=manifest.frame_policy,
        face_policy=manifest.face_policy,
        limits=config.limits,
        storage=settings.storage,
    )
    ds = scored(
        _due_dataset(plan, join(config.tables, "_runs", run_id, "due.parquet"), storage),
        extract,
        [
            ShippedScorer.ship(found.directory, task, found.scorer.digest, config.tables, storage)
            for task, found in resolved.items()
        ],
        config.resources.spread(plan.num_due, cluster["CPU"]),
    )
    sink = ScoreSink(
        DeltaStore(config.tables, storage),
        SinkConfig(
            run_id=run_id,
            policy=policy_digest(manifest.frame_policy, manifest.face_policy),
            scorers={task: (found.scorer.digest, found.version) for task, found in resolved.items()},
            commit_every_s=config.commit_every_s,
            commit_every_rows=config.commit_every_rows,
        ),
    )
    arrived = failed = 0
    with RunProgress("score", plan.num_due) as progress:
        for rows in arriving(ds):
            sink.add(rows)
            arrived += rows.num_rows
            failed += rows.num_rows - rows["reason"].null_count
            progress.update(arrived, f"{failed} quarantined")
        sink.commit()
    if sink.outcome.done != plan.num_due:
        raise RuntimeError(
            f"run {run_id}: the plan had {plan.num_due} videos due, {sink.outcome.done} were committed; "
            "what is missing is due again in the next run"
        )
    return ScoreResult(run_id, plan, sink.outcome, time.monotonic() - start)


def _due_dataset(plan: Plan, uri: str, storage: Storage) -> ray.data.Dataset:
    """Write the due list as a file that workers read, and open it."""
    buffer = io.BytesIO()
    reader = plan.due()
    with pq.ParquetWriter(buffer, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
    storage.put(uri, buffer.getvalue())
    filesystem, path = storage.arrow_filesystem(uri)
    return ray.data.read_parquet(path, filesystem=filesystem)


def print_result(result: ScoreResult) -> None:
    """The final account of a run, one line a fact."""
    outcome = result.outcome
    if outcome is None:
        console.print("nothing to do: every video of the catalog is done, quarantined or excluded")
        return
    reasons = ", ".join(f"{num} {reason}" for reason, num in outcome.quarantined.most_common()) or "none"
    console.print(
        f"run {result.run_id}: {outcome.done} of {result.plan.num_due} due videos accounted for "
        f"in {result.wall_s:.0f} s\n"
        f"  scored       {outcome.scored} videos, {outcome.num_faces} faces\n"
        f"  no_face      {outcome.no_face}\n"
        f"  quarantined  {outcome.quarantined.total()} ({reasons})\n"
        f"  read         {outcome.read_bytes / 1e6:.1f} MB in {outcome.num_commits} commits",
        highlight=False,
    )
