"""What a scoring run is to do: its options, and the scorers, plan and extraction that they come to."""

from dataclasses import dataclass, field

from infra.errors import UserError
from infra.leases import TTL_S
from infra.settings import Settings
from infra.tracking import shown_uri
from models.registry import CHAMPION, ResolvedScorer, resolve, tasks_with
from models.tasks.base import task_names
from models.video.limits import DecodeLimits
from ray_jobs.failure_guard import FailureLimits
from ray_jobs.planning import Content, Plan, Portion, make_plan
from ray_jobs.preflight import answering_client
from ray_jobs.sizing import Resources, Wanted
from ray_jobs.stages.extract import ExtractConfig, policy_digest
from ray_jobs.stages.sink import reserved_columns


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """One scoring run."""

    catalog: str
    tables: str
    scorers: dict[str, str]  # task -> scorer reference; empty: every task that has a champion
    retry: frozenset[str] = frozenset()
    content: Content = "etag"
    opt_out: str | None = None
    portion: Portion = field(default_factory=Portion)
    resources: Wanted = field(default_factory=Resources)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    failures: FailureLimits = field(default_factory=FailureLimits)
    max_tries: int = 3
    commit_every_s: float = 30.0
    commit_every_rows: int = 10_000
    with_faces: bool = True
    lease_ttl_s: float = TTL_S
    within: tuple[str, ...] = ()  # where every video must lie; empty: anywhere
    command: str = ""  # what the user typed, to go on with after a stop


def resolve_scorers(scorers: dict[str, str], settings: Settings) -> dict[str, ResolvedScorer]:
    """Load and check the scorers of a run.

    Raises:
        UserError: One does not exist, MLflow does not answer, or they were trained on different crops, so that one
            decode cannot serve them.
    """
    client = answering_client(settings.tracking, scorers.values() or None)
    if not scorers:
        scorers = dict.fromkeys(tasks_with(client, CHAMPION), CHAMPION)
    if not scorers:
        raise UserError(
            f"no task has a champion in the registry {shown_uri(client.tracking_uri)}: "
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
        all_tasks=task_names(),
        portion=config.portion,
        within=config.within,
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
