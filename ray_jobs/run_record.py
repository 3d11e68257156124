"""What is known about each run: a small JSON file under the tables' root, rewritten at every commit."""

import contextlib
import os
import socket
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.hosts import user_name
from infra.storage import ObjectNotFound, Storage, StorageError, join
from ray_jobs.outcome import Outcome
from ray_jobs.score_table import RUNS

State = Literal["running", "done", "stopped", "failed"]


class RunRecord(BaseModel):
    """One scoring run, as `status` shows it."""

    model_config = ConfigDict(extra="ignore")

    run_id: str
    state: State = "running"
    message: str = Field("", description="why it was stopped or failed")
    catalog: str
    command: str = Field("", description="the command that goes on where this run ends")
    policy: str = Field(description="digest of frame and face policy")
    scorers: dict[str, tuple[str, str]] = Field(description="task -> (digest, version)")
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    user: str = Field(default_factory=user_name)
    epoch: int = Field(0, description="of its lease")
    started_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    num_due: int = 0
    outcome: Outcome = Field(default_factory=Outcome)


def run_folder(tables: str, run_id: str) -> str:
    """Where a run keeps its record and its due list."""
    return join(tables, RUNS, run_id)


def write_record(tables: str, record: RunRecord, storage: Storage) -> None:
    """Write the record; a failure is left alone, since the tables hold what counts."""
    record.updated_at = datetime.now(UTC)
    with contextlib.suppress(StorageError):
        storage.put(join(run_folder(tables, record.run_id), "run.json"), record.model_dump_json(indent=1).encode())


def read_records(tables: str, storage: Storage) -> list[RunRecord]:
    """All runs' records, the newest first; files that are no records are passed over."""
    records = []
    try:
        found = [stat.uri for stat in storage.list_prefix(join(tables, RUNS)) if stat.uri.endswith("/run.json")]
    except ObjectNotFound:
        return []
    for uri in found:
        with contextlib.suppress(ValidationError, ObjectNotFound):
            records.append(RunRecord.model_validate_json(storage.read_all(uri)))
    return sorted(records, key=lambda record: record.started_at, reverse=True)


def remove_due_list(tables: str, run_id: str, storage: Storage) -> int:
    """Remove a run's due list, which is of no use after it; the number of files."""
    try:
        uris = [stat.uri for stat in storage.list_prefix(join(run_folder(tables, run_id), "due"))]
    except StorageError:
        return 0
    for uri in uris:
        with contextlib.suppress(StorageError):  # `tables optimize` takes what is left
            storage.delete(uri)
    return len(uris)
