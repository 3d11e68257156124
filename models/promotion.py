"""Which version is champion, and how that came about: every change is a numbered entry of a log in the registry.

The log of a task is a registered model of its own, ``facereel-TASK-changes``. The registry hands out version numbers
one by one, whoever asks, which is the one thing it does atomically: two changes at once get different numbers, and only
the one that gets the number after the last that its maker has seen may move the alias.
"""

import getpass
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from models.registry import CHALLENGER, CHAMPION, PREVIOUS, model_name, registered, version_with

Kind = Literal["promotion", "forced promotion", "rollback"]
DONE, VOID, PENDING = "done", "void", "pending"
_PAGE = 200
# A change takes a second. One that is pending for longer belongs to a process that died.
PENDING_S = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody has looked at who is about to change it: the champion, and the last entry of the log."""

    champion: str | None
    number: int  # of the last entry that counts


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the log."""

    number: int
    kind: str
    version: str  # champion afterwards
    before: str | None  # champion until then
    by: str
    reason: str
    record: str  # where the decision lies in the version's run
    state: str  # done; pending: under way, or its maker died; void: nothing was changed
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
    numbers = [change.number for change in changes(client, task) if change.state != VOID]
    return Seen(version_with(client, task, CHAMPION), max(numbers, default=0))


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
    record: str = "",
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
        record: Where the decision lies among the artifacts of the version's run.

    Raises:
        UserError: There is no such version, its files do not match its digest, it is champion already, or somebody else
            changed the champion after ``seen``.
    """
    seen = seen or look(client, task)
    registered(client, version, task=task)
    if seen.champion == version:
        raise UserError(f"{model_name(task)}: version {version} is the champion already")
    return _move(client, task, version, seen, kind, reason, by, previous=seen.champion, record=record)


def rollback(client: MlflowClient, task: str, *, reason: str, by: str | None = None) -> Change:
    """Make the version before the champion champion again; a second rollback goes one further back.

    What came before is read from the log, promotions forward and rollbacks back.

    Raises:
        UserError: There is no earlier champion, its files do not match its digest, or somebody else changed it
            meanwhile.
    """
    seen = look(client, task)
    earlier = _champions(client, task, seen.champion)[:-1]
    if seen.champion is None or not earlier:
        raise UserError(f"{model_name(task)} has no earlier champion to go back to")
    before, further = earlier[-1], earlier[-2] if len(earlier) > 1 else None
    registered(client, before, task=task)
    return _move(client, task, before, seen, "rollback", reason, by, previous=further, record="")


def _champions(client: MlflowClient, task: str, champion: str | None) -> list[str]:
    """The champions that led to the present one, itself last: a promotion adds one, a rollback drops one.

    One that was set by hand, before there was a log or beside it, stands where the log shows that it was left.
    """
    found: list[str] = []

    def add(version: str | None) -> None:
        if version is not None and found[-1:] != [version]:
            found.append(version)

    for change in reversed(changes(client, task)):
        if change.state == VOID or (change.state == PENDING and change.version != champion):
            continue
        if change.kind == "rollback":
            found = found[:-1]
        else:
            add(change.before)
        add(change.version)
    add(champion)
    return found


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
    record: str,
) -> Change:
    name, start = model_name(task), time.monotonic()
    entry = _enter(client, task, version, seen, kind, reason, by or who(), record)
    own = _as_change(entry)
    champion = version_with(client, task, CHAMPION)
    rivals = [
        change
        for change in changes(client, task)
        if change.number < own.number
        and change.state != VOID
        and (change.number > seen.number or (change.state == PENDING and _age_s(change, own) < PENDING_S))
    ]
    if rivals or champion != seen.champion:
        _tag(client, entry, VOID)
        told = "; ".join(f"change {o.number}, {o.kind} of version {o.version} by {o.by}, {o.state}" for o in rivals)
        raise UserError(
            f"{name}: the champion was changed by somebody else meanwhile (now version {champion or 'none'}; "
            f"{told or 'by hand'}): nothing was changed, look at it and try again (one that is pending because its "
            f"process died is in the way for {PENDING_S:.0f} s)"
        )
    _close_abandoned(client, task, own, champion)
    # A process that was held up until here may have been taken for dead, and another one have come in between.
    late = time.monotonic() - start > PENDING_S / 2
    if late or _as_change(client.get_model_version(entry.name, entry.version)).state != PENDING:
        _tag(client, entry, VOID)
        raise UserError(f"{name}: this change was held up for too long: nothing was changed, look and try again")
    client.set_registered_model_alias(name, CHAMPION, version)
    if previous is not None:
        client.set_registered_model_alias(name, PREVIOUS, previous)
    elif version_with(client, task, PREVIOUS) is not None:
        client.delete_registered_model_alias(name, PREVIOUS)
    if version_with(client, task, CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    _tag(client, entry, DONE)
    return _as_change(client.get_model_version(entry.name, entry.version))


def _close_abandoned(client: MlflowClient, task: str, own: Change, champion: str | None) -> None:
    """Give the entries of makers that died their last word: done where the champion is theirs, else void."""
    for entry in _entries(client, task):
        change = _as_change(entry)
        if change.number < own.number and change.state == PENDING:
            _tag(client, entry, DONE if change.version == champion else VOID)


def _age_s(change: Change, own: Change) -> float:
    """Seconds between two entries, by the registry's own clock."""
    return (own.at - change.at).total_seconds()


def _tag(client: MlflowClient, entry: ModelVersion, state: str) -> None:
    client.set_model_version_tag(entry.name, entry.version, "state", state)


def _enter(
    client: MlflowClient, task: str, version: str, seen: Seen, kind: Kind, reason: str, by: str, record: str
) -> ModelVersion:
    """A new entry of the log, with the next free number."""
    try:
        client.create_registered_model(log_name(task), description=f"changes of the champion of {model_name(task)}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.get_model_version(model_name(task), version)
    assert found.source is not None
    tags = {
        "kind": kind,
        "version": version,
        "before": seen.champion or "",
        "by": by,
        "reason": reason,
        "record": record,
    }
    return client.create_model_version(
        log_name(task),
        source=found.source,
        run_id=found.run_id,
        tags=tags,
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
        record=tags.get("record", ""),
        state=tags.get("state", PENDING),
        at=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
    )
