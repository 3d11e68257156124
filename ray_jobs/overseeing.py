"""What the registry holds, printed: versions, one version, the difference of two, and the log of changes."""

from datetime import UTC, datetime
from typing import Any

from mlflow.tracking import MlflowClient
from rich.table import Table

from models import registry
from models.promotion import Change, changes
from models.scorer import ScorerManifest
from models.tasks.base import get_task
from ray_jobs.console import console


def print_versions(client: MlflowClient, task: str) -> None:
    """A row a version."""
    best = get_task(task).best_metric
    found = registry.versions(client, task)
    if not found:
        console.print(f"{registry.model_name(task)}: no versions", highlight=False)
        return
    table = Table(title=registry.model_name(task))
    for name in ("version", "aliases", best, "digest", "dataset", "registered", "origin"):
        table.add_column(name, justify="right" if name in ("version", best) else "left")
    for item in found:
        tags = item.tags
        table.add_row(
            str(item.version),
            ", ".join(item.aliases),
            tags.get(f"metric.{best}", "–"),
            tags.get("digest", "–")[:12],
            tags.get("dataset_fingerprint", "–")[:12],
            _when(item.creation_timestamp),
            tags.get("origin", f"run {(item.run_id or '–')[:8]}"),
        )
    console.print(table)


def print_version(client: MlflowClient, reference: str, task: str) -> None:
    """One version's facts, its files checked against its digest."""
    name = get_task(task).name
    found = registry.registered(client, reference, task=name)
    version = registry.find_version(client, found.version, task=name)
    manifest = found.scorer.manifest
    aliases = [
        alias for alias in registry.ALIASES if registry.version_with(client, name, alias) == str(version.version)
    ]
    history = [change for change in changes(client, name) if str(version.version) in (change.version, change.before)]
    lines = [
        f"{found.version}  {' '.join(aliases)}",
        f"  digest       {found.scorer.digest}  (files match)",
        f"  registered   {_when(version.creation_timestamp)} by run {version.run_id}",
        f"  dataset      {manifest.dataset_fingerprint}",
        f"  network      {manifest.backbone}, input {manifest.input.size} pixels",
        f"  trained      {manifest.training.num_epochs} epochs on {manifest.training.num_train_rows:,} crops, "
        f"epoch {manifest.training.best_epoch + 1} kept, code {manifest.code_version}",
        f"  frames       {_words(manifest.frame_policy.model_dump())}",
        f"  faces        {_words(manifest.face_policy.model_dump())}",
        *(f"  change {item.number:<5} {_change(item)}" for item in reversed(history)),
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    table = Table()
    for column in ("metric", "validation", "trivial answer"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric, value in manifest.metrics.items():
        table.add_row(metric, f"{value:.4f}", f"{manifest.baseline_metrics.get(metric, float('nan')):.4f}")
    console.print(table)


def print_difference(client: MlflowClient, first: str, second: str, task: str) -> None:
    """The fields of two manifests that differ."""
    name = get_task(task).name
    scorers = [registry.registered(client, reference, task=name) for reference in (first, second)]
    one, other = (flat(found.scorer.manifest) for found in scorers)
    table = Table(title=f"{scorers[0].version} and {scorers[1].version}")
    for column in ("field", scorers[0].version, scorers[1].version):
        table.add_column(column, overflow="fold")
    for field in dict.fromkeys([*one, *other]):
        if one.get(field) != other.get(field):
            table.add_row(field, _cell(one.get(field)), _cell(other.get(field)))
    if not table.row_count:
        alike = scorers[0].scorer.digest == scorers[1].scorer.digest
        console.print("no field differs" + ("; they are the same files" if alike else "; their weights do"))
        return
    console.print(table)


def print_changes(client: MlflowClient, task: str) -> None:
    """The log, the newest first."""
    found = changes(client, get_task(task).name)
    if not found:
        console.print(f"{registry.model_name(task)}: its champion was never changed", highlight=False)
        return
    table = Table(title=f"changes of the champion of {registry.model_name(task)}")
    for column in ("change", "when", "what", "version", "before", "by", "why", "state"):
        table.add_column(column)
    for item in found:
        at = f"{item.at:%Y-%m-%d %H:%M}"
        table.add_row(
            str(item.number), at, item.kind, item.version, item.before or "–", item.by, item.reason, item.state
        )
    console.print(table)


def flat(manifest: ScorerManifest) -> dict[str, Any]:
    """Every field by its dotted name; curves are left out."""
    found: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                add(f"{prefix}.{name}" if prefix else name, inner)
        else:
            found[prefix] = value

    add("", manifest.model_dump(mode="json", exclude={"training": {"curves"}}))
    return found


def _change(item: Change) -> str:
    what = f"{item.kind} {item.before or 'none'} → {item.version} by {item.by}"
    return f"{item.at:%Y-%m-%d %H:%M} {what}{f': {item.reason}' if item.reason else ''} ({item.state})"


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _when(milliseconds: int | None) -> str:
    return "–" if milliseconds is None else f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M}"
