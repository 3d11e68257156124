"""Which version is champion, and how that came about: every change is a numbered entry of a log in the registry.

The log of a task is a registered model of its own, ``facereel-TASK-changes``. The registry hands out version numbers
one by one, whoever asks, which is the one thing it does atomically: two changes at once get different numbers, and only
the one that gets the number after the last that its maker has seen may move the alias.
"""

import getpass
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from models.registry import CHALLENGER, CHAMPION, PREVIOUS, model_name, resolve, version_with

Kind = Literal["promotion", "forced promotion", "rollback"]
DONE, VOID, PENDING = "done", "void", "pending"
_PAGE = 200
# A change takes a second. One that is pending for longer belongs to a process that died.
PENDING_S = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody has looked at who is about to change it: the champion, and the last entry of the log."""

    champion: str | None
    number: int


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the log."""

    number: int
    kind: str
    version: str  # champion afterwards
    before: str | None  # champion until then
    by: str
    reason: str
    state: str  # done; pending: its maker died in the middle; void: another one was quicker
    at: datetime


def log_name(task: str) -> str:
    """The registered model whose versions are the changes of a task's champion."""
    return f"{model_name(task)}-changes"


def who() -> str:
    """The user and host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def look(client: MlflowClient, task: str) -> Seen:
    """The state that a change starts from."""
    entries = _entries(client, task)
    return Seen(version_with(client, task, CHAMPION), max((int(entry.version) for entry in entries), default=0))


def changes(client: MlflowClient, task: str) -> list[Change]:
    """The log, the newest first."""
    found = [_as_change(entry) for entry in _entries(client, task)]
    return sorted(found, key=lambda change: -change.number)


def promote(
    client: MlflowClient,
    task: str,
    version: str,
    *,
    seen: Seen | None = None,
    kind: Kind = "promotion",
    reason: str = "",
    by: str | None = None,
) -> Change:
    """Make a version the champion, in one step with the log and the alias ``previous``.

    Args:
        client: The registry.
        task: The task whose champion changes.
        version: The registered version.
        seen: What the decision was made on; None: what is there now.
        kind: What it is called in the log.
        reason: Why, in somebody's words.
        by: Who; None: this process's user.

    Raises:
        UserError: There is no such version, its files do not match its digest, it is champion already, or somebody else
            changed the champion after ``seen``.
    """
    seen = seen or look(client, task)
    resolve(client, f"models:/{model_name(task)}/{version}", task=task)
    if seen.champion == version:
        raise UserError(f"{model_name(task)}: version {version} is the champion already")
    return _move(client, task, version, seen, kind, reason, by, previous=seen.champion)


def rollback(client: MlflowClient, task: str, *, reason: str, by: str | None = None) -> Change:
    """Make the version before the champion champion again; a second rollback goes one further back.

    Raises:
        UserError: There is no earlier champion, its files do not match its digest, or somebody else changed it
            meanwhile.
    """
    seen = look(client, task)
    before = version_with(client, task, PREVIOUS)
    if seen.champion is None or before is None:
        raise UserError(f"{model_name(task)} has no earlier champion to go back to")
    resolve(client, f"models:/{model_name(task)}/{before}", task=task)
    # The one before that, from the promotion that made it champion.
    made = [entry for entry in changes(client, task) if entry.version == before and entry.kind != "rollback"]
    further = next((entry.before for entry in made if entry.state == DONE), None)
    return _move(client, task, before, seen, "rollback", reason, by, previous=further)


def _move(
    client: MlflowClient,
    task: str,
    version: str,
    seen: Seen,
    kind: Kind,
    reason: str,
    by: str | None,
    *,
    previous: str | None,
) -> Change:
    name = model_name(task)
    _refuse_while_pending(client, task)
    entry = _enter(client, task, version, seen, kind, reason, by or who())
    number, champion = int(entry.version), version_with(client, task, CHAMPION)
    if number != seen.number + 1 or champion != seen.champion:
        client.set_model_version_tag(entry.name, entry.version, "state", VOID)
        others = [change for change in changes(client, task) if seen.number < change.number != number]
        told = "; ".join(f"entry {o.number}, {o.kind} of version {o.version} by {o.by}" for o in others)
        raise UserError(
            f"{name}: the champion was changed by somebody else meanwhile (now version {champion or 'none'}"
            f"{'; ' + told if told else ', by hand'}): nothing was changed, look at it and try again"
        )
    if previous is None:
        if version_with(client, task, PREVIOUS) is not None:
            client.delete_registered_model_alias(name, PREVIOUS)
    else:
        client.set_registered_model_alias(name, PREVIOUS, previous)
    client.set_registered_model_alias(name, CHAMPION, version)
    if version_with(client, task, CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    client.set_model_version_tag(entry.name, entry.version, "state", DONE)
    return _as_change(client.get_model_version(entry.name, entry.version))


def _refuse_while_pending(client: MlflowClient, task: str) -> None:
    """Wait for nobody: a change that is under way is for a person to look at before the next one."""
    newest = next(iter(changes(client, task)), None)
    if newest is None or newest.state != PENDING:
        return
    age_s = (datetime.now(UTC) - newest.at).total_seconds()
    if age_s < PENDING_S:
        raise UserError(
            f"{model_name(task)}: {newest.kind} of version {newest.version} by {newest.by} is under way (change "
            f"{newest.number}): look at what it comes to; if its process died, this works again in {PENDING_S:.0f} s"
        )


def _enter(client: MlflowClient, task: str, version: str, seen: Seen, kind: Kind, reason: str, by: str) -> ModelVersion:
    """A new entry of the log, with the next free number."""
    try:
        client.create_registered_model(log_name(task), description=f"changes of the champion of {model_name(task)}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.get_model_version(model_name(task), version)
    assert found.source is not None
    tags = {"kind": kind, "version": version, "before": seen.champion or "", "by": by, "reason": reason}
    return client.create_model_version(
        log_name(task),
        source=found.source,
        run_id=found.run_id,
        tags=tags | {"state": PENDING},
        description=f"{kind} of version {version} by {by}: {reason or 'no reason given'}",
    )


def _entries(client: MlflowClient, task: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{log_name(task)}'", max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _as_change(entry: ModelVersion) -> Change:
    tags = entry.tags
    return Change(
        number=int(entry.version),
        kind=tags.get("kind", ""),
        version=tags.get("version", ""),
        before=tags.get("before") or None,
        by=tags.get("by", ""),
        reason=tags.get("reason", ""),
        state=tags.get("state", PENDING),
        at=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
    )
