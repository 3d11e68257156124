"""The MLflow model registry: register a scorer, resolve a reference to its files, list versions, point aliases."""

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from infra.tracking import shown_uri
from models.scorer import CARD_FILE, MANIFEST_FILE, Scorer, load_scorer
from models.tasks.base import task_names

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
ALIASES = (CHAMPION, CHALLENGER, PREVIOUS)
_REGISTRY_URI = re.compile(r"^models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))$")


def model_name(task: str) -> str:
    """The registered model that holds the versions of a task's scorers."""
    return f"facereel-{task}"


@dataclass(frozen=True, slots=True)
class ResolvedScorer:
    """A scorer that was found, checked and loaded: what it is called, and where its files lie locally."""

    reference: str  # what the user asked for
    version: str  # "models:/facereel-fs2k/3", or the directory of an unregistered scorer
    run_id: str | None  # of the MLflow run that it came from, where it is registered
    directory: Path
    scorer: Scorer
    # Of a downloaded one: its files go when nobody holds this any more.
    folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)


def register(client: MlflowClient, directory: Path, *, run_id: str) -> ModelVersion:
    """Log the scorer's directory to the run and register it as a new version, with digest and metrics as tags."""
    scorer = load_scorer(directory)
    manifest = scorer.manifest
    name = model_name(manifest.task)
    client.log_artifacts(run_id, str(directory), artifact_path="scorer")
    try:
        client.create_registered_model(name, description=f"facereel scorers for the task {manifest.task}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run = client.get_run(run_id)
    tags = {"digest": scorer.digest, "task": manifest.task, "dataset_fingerprint": manifest.dataset_fingerprint}
    tags |= {f"metric.{metric}": f"{value:.6g}" for metric, value in manifest.metrics.items()}
    card = (directory / CARD_FILE).read_text(encoding="utf-8")
    return client.create_model_version(
        name, source=f"{run.info.artifact_uri}/scorer", run_id=run_id, tags=tags, description=card
    )


def set_alias(client: MlflowClient, task: str, version: str, alias: str) -> str | None:
    """Point an alias at a version of the task's model; the champion's has its own way (`models.promotion`).

    Returns:
        The version that the alias pointed at before, or None.

    Raises:
        UserError: The version is not registered, or its files do not match the digest in its tag.
    """
    resolve(client, f"models:/{model_name(task)}/{version}", task=task)
    before = version_with(client, task, alias)
    try:
        client.set_registered_model_alias(model_name(task), alias, version)
    except MlflowException as error:
        raise UserError(f"{alias!r} cannot be an alias: {error.message}") from error
    return before


def version_with(client: MlflowClient, task: str, alias: str) -> str | None:
    """The version that an alias of the task's model points at, or None."""
    try:
        return str(client.get_model_version_by_alias(model_name(task), alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def versions(client: MlflowClient, task: str) -> list[ModelVersion]:
    """All versions of the task's model with their aliases, the newest first."""
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{model_name(task)}'", max_results=200, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    aliases: dict[str, list[str]] = {}
    if found:
        for alias, version in client.get_registered_model(model_name(task)).aliases.items():
            aliases.setdefault(str(version), []).append(alias)
    for item in found:
        item.aliases = sorted(aliases.get(str(item.version), []))
    return sorted(found, key=lambda item: -int(item.version))


def tasks_with(client: MlflowClient, alias: str) -> list[str]:
    """The known tasks whose model has the alias, sorted."""
    return [task for task in task_names() if version_with(client, task, alias) is not None]


def resolve(client: MlflowClient, reference: str, *, task: str) -> ResolvedScorer:
    """The scorer that ``reference`` names, loaded and checked.

    Args:
        client: The tracking client.
        reference: ``models:/name@alias``, ``models:/name/3``, or a scorer directory. An alias (``champion``) or a
            version (``3``) alone means the task's own model.
        task: The task that the scorer must answer.

    Raises:
        UserError: No such version, alias or directory; the digest differs from the tag; or it is another task's.
    """
    folder = None
    if Path(reference).is_dir():
        directory, version, digest, run_id = Path(reference), str(Path(reference).resolve()), None, None
    else:
        found = find_version(client, reference, task=task)
        digest = _digest_tag(found, reference)
        folder = tempfile.TemporaryDirectory(prefix="facereel-scorer-", ignore_cleanup_errors=True)
        mlflow.artifacts.download_artifacts(
            artifact_uri=found.source, dst_path=folder.name, tracking_uri=client.tracking_uri
        )
        manifests = list(Path(folder.name).rglob(MANIFEST_FILE))
        if not manifests:
            raise UserError(f"{reference}: version {found.version} has no {MANIFEST_FILE} among its artifacts")
        directory = manifests[0].parent
        version, run_id = f"models:/{found.name}/{found.version}", found.run_id or None
    scorer = load_scorer(directory, expected_digest=digest)
    if scorer.manifest.task != task:
        raise UserError(f"{reference} answers the task {scorer.manifest.task!r}, not {task!r}")
    return ResolvedScorer(reference, version, run_id, directory, scorer, folder)


def read_artifact(client: MlflowClient, run_id: str, path: str) -> str | None:
    """A text among a run's artifacts; None where there is none."""
    if path not in [item.path for item in client.list_artifacts(run_id, path.rpartition("/")[0] or None)]:
        return None
    with tempfile.TemporaryDirectory(prefix="facereel-artifact-") as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")


def registered(client: MlflowClient, reference: str, *, task: str) -> ResolvedScorer:
    """A version of the task's own model, loaded and checked; a folder of that name is not meant.

    Raises:
        UserError: There is no such version, it is another model's, or its files do not match its digest.
    """
    found = find_version(client, reference, task=task)
    if found.name != model_name(task):
        raise UserError(f"{reference} is a version of {found.name}, not of {model_name(task)}")
    return resolve(client, f"models:/{found.name}/{found.version}", task=task)


def find_digest(client: MlflowClient, reference: str, *, task: str) -> str:
    """The digest of the registered scorer that ``reference`` names, without loading it.

    Raises:
        UserError: No such version or alias, or it was not registered by facereel.
    """
    return _digest_tag(find_version(client, reference, task=task), reference)


def _digest_tag(found: ModelVersion, reference: str) -> str:
    digest: str | None = found.tags.get("digest")
    if digest is None:
        raise UserError(
            f"{reference}: version {found.version} carries no digest tag, so it was not registered by facereel"
        )
    return digest


def find_version(client: MlflowClient, reference: str, *, task: str) -> ModelVersion:
    """The registered version that ``reference`` (an alias, a number, ``models:/…``) names.

    Raises:
        UserError: There is none.
    """
    uri = f"models:/{model_name(task)}/{reference}" if reference.isdigit() else reference
    if re.fullmatch(r"[A-Za-z][\w-]*", reference):
        uri = f"models:/{model_name(task)}@{reference}"
    match = _REGISTRY_URI.match(uri)
    if match is None:
        raise UserError(
            f"{reference!r} is no scorer: give a scorer directory, an alias such as 'champion', "
            f"or models:/{model_name(task)}/VERSION"
        )
    try:
        if match["alias"]:
            return client.get_model_version_by_alias(match["name"], match["alias"])
        return client.get_model_version(match["name"], match["version"])
    except MlflowException as error:
        raise UserError(
            f"no scorer {uri} in the registry {shown_uri(client.tracking_uri)}: "
            f"train one (`train --task {task}`), promote it, or give a directory ({error.message})"
        ) from error
