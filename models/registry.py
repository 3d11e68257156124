"""The MLflow model registry: register a scorer, resolve a reference to its files, move an alias."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from models.scorer import Scorer, load_scorer
from models.tasks.base import task_names

CHAMPION = "champion"
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
    return client.create_model_version(
        name, source=f"{run.info.artifact_uri}/scorer", run_id=run_id, tags=tags, description=f"digest {scorer.digest}"
    )


def promote(client: MlflowClient, task: str, version: str, *, alias: str = CHAMPION) -> str | None:
    """Point ``alias`` at ``version`` of the task's model.

    Returns:
        The version that the alias pointed at before, or None.

    Raises:
        UserError: The version is not registered, or its files do not match the digest in its tag.
    """
    name = model_name(task)
    resolve(client, f"models:/{name}/{version}", task=task)
    try:
        before = str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException:
        before = None
    client.set_registered_model_alias(name, alias, version)
    return before


def tasks_with(client: MlflowClient, alias: str) -> list[str]:
    """The known tasks whose model has the alias, sorted."""
    found = []
    for task in task_names():
        try:
            client.get_model_version_by_alias(model_name(task), alias)
        except MlflowException:
            continue
        found.append(task)
    return found


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
    if Path(reference).is_dir():
        directory, version, digest, run_id = Path(reference), str(Path(reference).resolve()), None, None
    else:
        found = _find_version(client, reference, task)
        digest = _digest_tag(found, reference)
        directory = Path(tempfile.mkdtemp(prefix="facereel-scorer-"))
        mlflow.artifacts.download_artifacts(
            artifact_uri=found.source, dst_path=str(directory), tracking_uri=client.tracking_uri
        )
        directory = next(path.parent for path in directory.rglob("scorer.json"))
        version, run_id = f"models:/{found.name}/{found.version}", found.run_id or None
    scorer = load_scorer(directory, expected_digest=digest)
    if scorer.manifest.task != task:
        raise UserError(f"{reference} answers the task {scorer.manifest.task!r}, not {task!r}")
    return ResolvedScorer(reference=reference, version=version, run_id=run_id, directory=directory, scorer=scorer)


def find_digest(client: MlflowClient, reference: str, *, task: str) -> str:
    """The digest of the registered scorer that ``reference`` names, without loading it.

    Raises:
        UserError: No such version or alias, or it was not registered by facereel.
    """
    return _digest_tag(_find_version(client, reference, task), reference)


def _digest_tag(found: ModelVersion, reference: str) -> str:
    digest: str | None = found.tags.get("digest")
    if digest is None:
        raise UserError(
            f"{reference}: version {found.version} carries no digest tag, so it was not registered by facereel"
        )
    return digest


def _find_version(client: MlflowClient, reference: str, task: str) -> ModelVersion:
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
            f"no scorer {uri} in the registry {client.tracking_uri}: "
            f"train one (`train --task {task}`), promote it, or give a directory ({error.message})"
        ) from error
