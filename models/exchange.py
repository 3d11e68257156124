"""Move a scorer between registries unchanged: a folder with its files, its tags, and whom it was trained on."""

import json
import shutil
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from infra.tracking import shown_uri
from models.registry import find_version, read_artifact, register, registered
from models.scorer import load_scorer

ORIGIN_FILE, SCORER_FOLDER = "origin.json", "scorer"
# Of the training run, beside the scorer: without them a promotion could not tell whom it was trained on.
_CARRIED = ("dataset/people.txt", "dataset/dataset.json")


def export_scorer(client: MlflowClient, reference: str, task: str, out: Path) -> ModelVersion:
    """Write a registered scorer to a new folder: its files, ``origin.json``, and parts of its run.

    Raises:
        UserError: There is no such version, its files do not match its digest, or the folder holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} holds something already: give a new folder")
    found = registered(client, reference, task=task)
    version = find_version(client, found.version, task=task)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(found.directory, out / SCORER_FOLDER)
    for path in _CARRIED:
        text = read_artifact(client, str(version.run_id), path)
        if text is None:
            continue
        (out / path).parent.mkdir(exist_ok=True)
        (out / path).write_text(text, encoding="utf-8")
    origin = {"version": found.version, "registry": shown_uri(client.tracking_uri), "run_id": version.run_id}
    # Last: a folder without it is no export.
    (out / ORIGIN_FILE).write_text(
        json.dumps({"task": task, "digest": found.scorer.digest, "origin": origin, "tags": version.tags}, indent=2)
    )
    return version


def import_scorer(client: MlflowClient, folder: Path, experiment: str) -> ModelVersion:
    """Register an exported scorer as a new version here, under a run of its own in the experiment.

    Raises:
        UserError: The folder is no export, or its files do not match the digest that it was exported with.
    """
    try:
        exported = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
        digest, origin, tags = exported["digest"], dict(exported["origin"]), dict(exported["tags"])
        came_from = f"{origin['version']} of {origin['registry']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no export of a scorer: {ORIGIN_FILE}: {error}") from error
    scorer = load_scorer(folder / SCORER_FOLDER, expected_digest=digest)
    for known in client.search_model_versions(f"name = 'facereel-{scorer.manifest.task}'"):
        if known.tags.get("digest") == digest:
            raise UserError(f"models:/{known.name}/{known.version} is this scorer already (digest {digest[:16]})")
    run = client.create_run(experiment, run_name=f"import of {origin['version']}")
    run_id = run.info.run_id
    try:
        for name, value in origin.items():
            client.set_tag(run_id, f"origin.{name}", str(value))
        for name, value in scorer.manifest.metrics.items():
            client.log_metric(run_id, name, value)
        for path in _CARRIED:
            if (folder / path).is_file():
                client.log_artifact(run_id, str(folder / path), str(Path(path).parent))
        version = register(client, folder / SCORER_FOLDER, run_id=run_id)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    for name, value in tags.items():
        if name not in version.tags:
            client.set_model_version_tag(version.name, version.version, name, value)
    client.set_model_version_tag(version.name, version.version, "origin", came_from)
    client.set_terminated(run_id)
    return version
