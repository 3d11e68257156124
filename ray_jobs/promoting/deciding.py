"""One decision about a promotion, end to end: measure, judge, record, and move the champion if it may be moved."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from rich.table import Table

from infra.errors import RunStopped, UserError
from infra.settings import Settings
from infra.storage import Storage, join
from infra.tracking import code_version
from models import promotion, registry
from models.promotion import Change
from models.registry import ResolvedScorer, model_name
from models.tasks.base import Task, get_task
from ray_jobs.comparing import Compared
from ray_jobs.console import console
from ray_jobs.crops.dataset import (
    PEOPLE,
    UNKNOWN_PEOPLE,
    DatasetManifest,
    digest_of,
    person_digests,
    read_manifest,
    split_parts,
)
from ray_jobs.crops.mapping import scanned
from ray_jobs.evaluating import EvaluateConfig, measure, people_of_training
from ray_jobs.preflight import answering_client, refuse_unwritable
from ray_jobs.promoting.gates import (
    Gates,
    Verdict,
    judge_calibration,
    judge_contract,
    judge_hardware,
    judge_quality,
    judge_shadow,
    judge_slices,
    unmeasured,
)
from ray_jobs.promoting.hardware import Cost, measure_cost
from ray_jobs.promoting.record import PAGE, RECORD, Candidate, Decision, EvaluationSet
from ray_jobs.promoting.shadow import Shadow, shadow_scores
from ray_jobs.reports.decision import decision_page
from ray_jobs.sizing import Resources

REFUSED = 3  # exit code


@dataclass(frozen=True, slots=True)
class PromoteConfig:
    """One decision."""

    task: str
    version: str
    gates: Gates
    dataset: str | None = None
    split: str | None = None  # None: test where the dataset has it, else all
    catalog: str | None = None
    sample: int = 500
    slices: tuple[str, ...] = ()  # further columns of the evaluation set
    catalog_slices: tuple[str, ...] = ()  # columns of the catalog
    opt_out: str | None = None
    num_resamples: int = 200
    resources: Resources = field(default_factory=Resources)
    reason: str = ""
    force: bool = False
    dry_run: bool = False
    out: str | None = None


def run_promote(config: PromoteConfig, settings: Settings) -> tuple[Decision, Change | None]:
    """Decide, write the record, and move the champion where every gate is passed (or the decision is forced).

    Returns:
        The decision, and the entry of the log of changes; None for a dry run.

    Raises:
        UserError: The version, the evaluation set or the catalog is unusable; nothing was changed.
        RunStopped: A gate refuses; the record says which.
    """
    if config.force and not config.reason.strip():
        raise UserError("--force needs a --reason: it will stand in the log of changes")
    if config.out is not None:
        refuse_unwritable(Storage(settings.storage), "--out", config.out)
    task, client = get_task(config.task), answering_client(settings.tracking)
    name = model_name(task.name)
    seen = promotion.look(client, task.name)
    challenger = registry.registered(client, config.version, task=task.name)
    version = challenger.version.rpartition("/")[2]
    if seen.champion == version:
        raise UserError(f"{name}: version {version} is the champion already")
    _check_metrics(client, task, version)
    champion, lost = _champion(client, task, seen.champion, force=config.force)
    decision = _decide(config, settings, client, task, challenger, champion, lost)
    page = decision_page(task, decision, challenger.scorer.manifest, settings)
    _print(decision)
    if config.out is not None:
        _write(config.out, decision, page, settings)
    assert challenger.run_id is not None
    if config.dry_run:
        console.print("dry run: nothing is changed, and the decision is not logged", highlight=False)
    else:
        client.log_text(challenger.run_id, decision.model_dump_json(indent=2), f"{decision.folder}/{RECORD}")
        client.log_text(challenger.run_id, page, f"{decision.folder}/{PAGE}")
        console.print(f"recorded in run {challenger.run_id}: {decision.folder}/{PAGE}", highlight=False)
    if decision.outcome == "refused":
        failed = list(dict.fromkeys(verdict.gate for verdict in decision.verdicts if not verdict.passed))
        refusal = f"{name}: version {version} is not promoted: {', '.join(failed)} not passed"
        console.print(refusal, highlight=False)
        raise RunStopped(refusal, REFUSED)
    if config.dry_run:
        return decision, None
    change = promotion.promote(
        client,
        task.name,
        version,
        seen=seen,
        kind="forced promotion" if decision.outcome == "forced" else "promotion",
        reason=config.reason,
        by=decision.by,
        record=decision.folder,
    )
    console.print(
        f"{name}: champion is version {version} now (change {change.number}; before: {change.before or 'none'})\n"
        f"what it makes stale: python -m ray_jobs plan --task {task.name} --catalog … --tables … --estimate",
        highlight=False,
    )
    return decision, change


def _champion(
    client: MlflowClient, task: Task, version: str | None, *, force: bool
) -> tuple[ResolvedScorer | None, str | None]:
    """The champion, or why it cannot be loaded where the decision is forced."""
    if version is None:
        return None, None
    try:
        return registry.registered(client, version, task=task.name), None
    except (UserError, MlflowException) as error:
        if force:
            return None, f"version {version}, the champion, cannot be loaded: {error}"
        raise UserError(
            f"version {version}, the champion, cannot be loaded, so nothing can be compared with it ({error}): roll "
            "back, or promote with --force and a --reason"
        ) from error


def _check_metrics(client: MlflowClient, task: Task, version: str) -> None:
    tags = client.get_model_version(model_name(task.name), version).tags
    if f"metric.{task.best_metric}" not in tags:
        raise UserError(
            f"{model_name(task.name)}: version {version} has no metrics (no tag metric.{task.best_metric}): "
            "register it by train or models import"
        )


def _decide(
    config: PromoteConfig,
    settings: Settings,
    client: MlflowClient,
    task: Task,
    challenger: ResolvedScorer,
    champion: ResolvedScorer | None,
    lost: str | None,
) -> Decision:
    scorers = [challenger] if champion is None else [challenger, champion]
    gates, notes = config.gates, []
    compared, evaluation_set = None, None
    if config.dataset is not None:
        manifest = read_manifest(config.dataset, Storage(settings.storage))
        split = config.split or ("test" if "test" in manifest.parts else "all")
        if split not in (*manifest.parts, "all"):
            raise UserError(f"{config.dataset} has no split {split!r}; it has {', '.join(manifest.parts)}, all")
        if gates.quality is not None and gates.quality.fingerprint not in (None, manifest.fingerprint):
            raise UserError(
                f"{config.dataset} is not the evaluation set that the gates name (quality.fingerprint): its "
                f"fingerprint is {manifest.fingerprint}"
            )
        _refuse_training_data(config.dataset, split, client, challenger, manifest, settings)
        trained_on = "" if champion is None else champion.scorer.manifest.dataset_fingerprint
        if trained_on == manifest.fingerprint and split != "test":
            notes.append("The champion was trained on the evaluation set: it looks better there than it is.")
        compared = _measure(config, config.dataset, split, scorers, settings)
        evaluation_set = EvaluationSet(uri=config.dataset, split=split, fingerprint=manifest.fingerprint)
    shadow = _shadow(config, settings, task, challenger, champion)
    costs = [] if gates.hardware is None else [measure_cost(scorer.directory) for scorer in scorers]
    verdicts = _judge(gates, scorers, compared, costs, shadow)
    if lost is not None:
        verdicts.append(unmeasured("champion", "the scorer to compare with", lost))
    elif champion is None:
        notes.append("There is no champion yet: gates that compare with one have nothing to say.")
    if refused := [section for section, gate in gates if gate is None]:
        notes.append(f"Gates that were not asked: {', '.join(refused)}.")
    if config.dry_run:
        notes.append("A dry run: nothing was changed, whatever the verdicts.")
    passed = all(verdict.passed for verdict in verdicts)
    return Decision(
        task=task.name,
        outcome="passed" if passed else "forced" if config.force else "refused",
        at=datetime.now(UTC),
        by=promotion.who(),
        reason=config.reason,
        code_version=code_version(),
        challenger=_candidate(challenger, 0, compared, costs),
        champion=None if champion is None else _candidate(champion, 1, compared, costs),
        gates=gates,
        verdicts=tuple(verdicts),
        evaluation_set=evaluation_set,
        differences={} if compared is None else compared.differences,
        shadow=shadow,
        notes=tuple(notes),
    )


def _candidate(scorer: ResolvedScorer, index: int, compared: Compared | None, costs: Sequence[Cost]) -> Candidate:
    return Candidate(
        version=scorer.version.rpartition("/")[2],
        digest=scorer.scorer.digest,
        run_id=scorer.run_id,
        evaluation=None if compared is None else compared.evaluations[index],
        cost=costs[index] if costs else None,
    )


def _refuse_training_data(
    dataset: str,
    split: str,
    client: MlflowClient,
    challenger: ResolvedScorer,
    manifest: DatasetManifest,
    settings: Settings,
) -> None:
    """Refuse an evaluation set with crops, or with people, that the challenger was made from."""
    reference = challenger.version
    others = "its split test or a dataset of other people" if "test" in manifest.parts else "a dataset of other people"
    if challenger.scorer.manifest.dataset_fingerprint == manifest.fingerprint and split != "test":
        raise UserError(
            f"{dataset}: {reference} was trained on this dataset (fingerprint {manifest.fingerprint[:16]}): only "
            f"{others} can say what it is worth"
        )
    trained_on = people_of_training(client, challenger)
    if trained_on is None or UNKNOWN_PEOPLE in trained_on:
        why = f"has no dataset/{PEOPLE}" if trained_on is None else "started from weights of unknown training"
        raise UserError(
            f"{reference}: nobody can tell whether the evaluation set is of people whom it never saw, since its run "
            f"{challenger.run_id} {why}: train it again, or switch the gates quality, slices and calibration off "
            "(null) and leave --dataset out"
        )
    storage = Storage(settings.storage)
    table = scanned(split_parts(dataset, manifest, split), storage).to_table(columns=["creator_id", "video_id"])
    known = person_digests(table) & trained_on
    if known:
        names = [*table["creator_id"].to_pylist(), *table["video_id"].to_pylist()]
        both = sorted({name for name in names if name is not None and digest_of(name) in known})
        raise UserError(
            f"{dataset}: {len(both)} of its creators or videos were in the training of {reference} "
            f"({', '.join(both[:3])}{', …' if len(both) > 3 else ''}): evaluate on people whom it never saw"
        )


def _measure(
    config: PromoteConfig, dataset: str, split: str, scorers: Sequence[ResolvedScorer], settings: Settings
) -> Compared:
    evaluation = EvaluateConfig(
        task=config.task,
        dataset=dataset,
        out="",
        split=split,
        slices=config.slices,
        num_resamples=config.num_resamples,
        use_gpu=config.resources.gpus_per_predictor > 0,
    )
    return measure(evaluation, scorers, settings).compared


def _shadow(
    config: PromoteConfig,
    settings: Settings,
    task: Task,
    challenger: ResolvedScorer,
    champion: ResolvedScorer | None,
) -> Shadow | None:
    if config.catalog is None or champion is None or config.gates.shadow is None:
        return None
    return shadow_scores(
        task,
        challenger,
        champion,
        config.catalog,
        settings,
        num_videos=config.sample,
        bands=config.gates.shadow.bands,
        slices=config.catalog_slices,
        opt_out=config.opt_out,
        resources=config.resources,
    )


def _judge(
    gates: Gates,
    scorers: Sequence[ResolvedScorer],
    compared: Compared | None,
    costs: Sequence[Cost],
    shadow: Shadow | None,
) -> list[Verdict]:
    """Every gate that is asked; one without a figure is not passed."""
    verdicts: list[Verdict] = []
    missing = "no --dataset to measure on, and the gate is not switched off (null)"
    if compared is not None:
        verdicts += [] if gates.quality is None else judge_quality(gates.quality, compared)
        verdicts += [] if gates.slices is None else judge_slices(gates.slices, compared)
        verdicts += [] if gates.calibration is None else judge_calibration(gates.calibration, compared)
    else:
        asked = {"quality": gates.quality, "slices": gates.slices, "calibration": gates.calibration}
        verdicts += [unmeasured(name, "evaluation set", missing) for name, gate in asked.items() if gate is not None]
    if gates.hardware is not None:
        verdicts += judge_hardware(gates.hardware, costs)
    champion = scorers[1] if len(scorers) > 1 else None
    if gates.contract is not None:
        before = None if champion is None else champion.scorer.manifest
        verdicts += judge_contract(gates.contract, scorers[0].scorer.manifest, before)
    if gates.shadow is not None and shadow is not None:
        verdicts += judge_shadow(gates.shadow, shadow)
    elif gates.shadow is not None and champion is not None:
        why = "no --catalog to sample, and the gate is not switched off (null)"
        verdicts.append(unmeasured("shadow", "sample of the catalog", why))
    return verdicts


def _write(out: str, decision: Decision, page: str, settings: Settings) -> None:
    storage = Storage(settings.storage)
    storage.put(join(out, RECORD), decision.model_dump_json(indent=2).encode())
    storage.put(join(out, PAGE), page.encode())
    console.print(f"wrote {join(out, PAGE)} and {RECORD}", highlight=False)


def _print(decision: Decision) -> None:
    against = f"version {decision.champion.version}" if decision.champion is not None else "no champion yet"
    table = Table(title=f"{model_name(decision.task)}: version {decision.challenger.version} against {against}")
    for column in ("gate", "what", "figure", "limit", "verdict", ""):
        table.add_column(column, justify="right" if column in ("figure", "limit") else "left")
    for item in decision.verdicts:
        figure, limit = ("–" if value is None else f"{value:.4g}" for value in (item.figure, item.limit))
        table.add_row(item.gate, item.what, figure, limit, "passed" if item.passed else "REFUSED", item.words)
    console.print(table)
    for note in decision.notes:
        console.print(f"note: {note}", highlight=False)
