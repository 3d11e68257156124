"""What is known of each address: a Delta table, one row a try, of which the newest counts."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from infra.errors import UserError
from infra.scanning import stream
from infra.storage import Storage
from infra.tables import DeltaStore
from ray_jobs.ingesting.failures import Failed
from ray_jobs.ingesting.fetcher import Stored
from ray_jobs.ingesting.queues import Job
from ray_jobs.labels.cleaning import NotInStorage, is_web

TABLE = "ingested"
FETCHED = "fetched"
SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("state", pa.string()),  # fetched, or the reason why not
        ("retryable", pa.bool_()),
        ("detail", pa.string()),
        ("media_url", pa.string()),  # where the bytes came from, after redirects and resolvers
        ("http_status", pa.int32()),
        ("content_type", pa.string()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("run_id", pa.string()),
        ("ended_at", pa.timestamp("us", tz="UTC")),
    ]
)


@dataclass(frozen=True, slots=True)
class Known:
    """The newest row of an address."""

    state: str
    retryable: bool
    detail: str
    uri: str | None
    sha256: str | None


def row_of(job: Job, answer: Stored | Failed, run_id: str) -> dict[str, Any]:
    """The row about an address that has ended."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {"url": job.url, "media_url": job.target, "run_id": run_id, "ended_at": datetime.now(UTC)}
    if isinstance(answer, Failed):
        return row | {
            "state": answer.reason,
            "retryable": answer.retryable,
            "detail": answer.detail,
            "http_status": answer.http_status,
        }
    return row | {
        "state": FETCHED,
        "retryable": False,
        "detail": "" if answer.is_new else "the content was there already",
        "http_status": answer.http_status,
        "content_type": answer.content_type,
        "size_bytes": answer.size_bytes,
        "sha256": answer.sha256,
        "uri": answer.uri,
        "etag": answer.etag,
    }


def read_state(into: str, storage: Storage) -> dict[str, Known]:
    """The newest row of each address below ``into``; empty where nothing was ingested."""
    dataset = DeltaStore(into, storage).dataset(TABLE)
    if dataset is None:
        return {}
    with duckdb.connect() as connection:
        connection.register(
            "tries", stream(dataset, ["url", "state", "retryable", "detail", "uri", "sha256", "ended_at"])
        )
        rows = connection.execute(
            "SELECT url, state, retryable, detail, uri, sha256 FROM tries "
            "QUALIFY row_number() OVER (PARTITION BY url ORDER BY ended_at DESC) = 1 ORDER BY url"
        ).fetchall()
    return {url: Known(*values) for url, *values in rows}


def ingested(into: str, storage: Storage) -> Callable[[str], str]:
    """From a web address to the object that holds its video, for `clean_labels`; other addresses stay as they are.

    Raises:
        UserError: Nothing was ingested there.
    """
    known = read_state(into, storage)
    if not known:
        raise UserError(f"--videos {into}: nothing was ingested there; give the --into of an ingest")

    def locate(address: str) -> str:
        if not is_web(address):
            return address
        found = known.get(address)
        if found is None:
            raise NotInStorage("not_ingested")
        if found.uri is None:
            raise NotInStorage(f"not_fetched_{found.state}")
        return found.uri

    return locate
