"""Checks that use the stores as a run does: objects, Delta commits, MLflow; each removes what it wrote."""

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from itertools import islice

import pyarrow as pa

from infra.settings import TrackingSettings
from infra.storage import AccessDenied, AlreadyExists, ObjectNotFound, Storage, StorageError, is_s3, join
from infra.tables import DeltaStore
from ray_jobs.diagnosing.findings import Finding, fail, ok, warn
from ray_jobs.diagnosing.judging import SERVER_CLOCK_STEP_S, judge_clock

NUM_WRITERS, NUM_ROUNDS = 8, 3
GRANTS = "grant list, get, put and delete below it to the role or key that jobs have"


def scratch(root: str) -> str:
    """A prefix below ``root`` that nobody else uses."""
    return join(root, f"_doctor-{secrets.token_hex(6)}")


def check_listing(storage: Storage, uri: str) -> Finding:
    """Read access to a catalog or prefix: list it, and read a range of its first object."""
    try:
        first = storage.stat(uri) if storage.exists(uri) else next(islice(storage.list_prefix(uri), 1), None)
    except ObjectNotFound:
        first = None
    if first is None:
        return fail("catalog", f"{uri}: nothing is there", "correct --catalog, or put videos there")
    part = storage.read_range(first.uri, 0, min(1024, first.size_bytes))
    return ok("catalog", f"{uri}: listed, {len(part)} bytes of {first.uri} read")


def check_objects(storage: Storage, root: str) -> list[Finding]:
    """Write, list, read a range, put under a condition, and delete, below ``root``."""
    place = scratch(root)
    uri, data = join(place, "object"), bytes(range(256)) * 8
    try:
        try:
            storage.put(uri, data)
        except AccessDenied as error:
            return [fail("storage write", str(error), f"{root}: {GRANTS}")]
        findings = [ok("storage write", f"{root}: an object was written")]
        listed = [stat.uri.rsplit("/", 1)[-1] for stat in storage.list_prefix(place)]
        findings.append(
            ok("storage list", "the object is listed")
            if listed == ["object"]
            else fail("storage list", f"{place} lists {listed} after one put", "use a store that lists what it holds")
        )
        part = storage.read_range(uri, 300, 310)
        findings.append(
            ok("storage read", "a range of it was read")
            if part == data[300:310]
            else fail("storage read", f"bytes 300–310 came back as {part!r}", "a proxy drops the Range header")
        )
        findings += check_conditional_put(storage, place)
        try:
            storage.delete(uri)
        except AccessDenied as error:
            return [*findings, fail("storage delete", f"{error}; {place} stays behind", f"{root}: {GRANTS}")]
        return [*findings, ok("storage delete", "the object was removed")]
    finally:
        _remove(storage, place)


def check_conditional_put(storage: Storage, place: str) -> list[Finding]:
    """A put-if-absent of what is there is refused; of several at once one succeeds."""
    name = "storage conditional put"
    uri = join(place, "condition")
    storage.put_if_absent(uri, b"first")
    with contextlib.suppress(AlreadyExists):
        storage.put_if_absent(uri, b"second")
        return [
            fail(
                name,
                "the store overwrites in spite of If-None-Match: two runs would write the same commit",
                "use another store for the tables (AWS S3, GCS, R2, Azure, a local disk)",
            )
        ]
    most = max(_num_winners(storage, join(place, f"race-{number}")) for number in range(NUM_ROUNDS))
    if most > 1:
        return [
            warn(
                name,
                f"of {NUM_WRITERS} puts at once, {most} were told that they were first",
                "never commit to one table from two clusters: on this store the lease alone keeps runs apart",
            )
        ]
    return [ok(name, f"of {NUM_WRITERS} puts at once one succeeds, {NUM_ROUNDS} times")]


def _num_winners(storage: Storage, uri: str) -> int:
    def put(number: int) -> bool:
        try:
            storage.put_if_absent(uri, str(number).encode())
        except StorageError:  # refused, or asked to come again: not first, in any case
            return False
        return True

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        return sum(pool.map(put, range(NUM_WRITERS)))


def check_delta(storage: Storage, root: str) -> Finding:
    """Two commits to a new Delta table, one of them repeated."""
    place = scratch(root)
    try:
        store = DeltaStore(place, storage)
        rows = pa.table({"number": [1, 2, 3]})
        committed = [store.append("table", rows, run_id="doctor", sequence=number) for number in (1, 2, 2)]
        number = store.num_rows("table")
        if committed != [True, True, False] or number != 6:
            return fail(
                "delta",
                f"commits {committed}, {number} rows where 6 belong",
                "use another store for the tables: this one loses or doubles commits",
            )
        return ok("delta", f"{root}: two commits, and a repeated one recognised")
    finally:
        _remove(storage, place)


def _remove(storage: Storage, place: str) -> None:
    with contextlib.suppress(StorageError):
        for stat in list(storage.list_prefix(place)):
            storage.delete(stat.uri)
    if not is_s3(place):
        shutil.rmtree(storage.absolute(place), ignore_errors=True)  # the folders


def check_mlflow(settings: TrackingSettings) -> list[Finding]:
    """A run with a metric and an artifact, and a registered model; all removed again."""
    from infra.tracking import experiment_id, impatient, shown_uri, tracking_client

    with impatient():
        client = tracking_client(settings)
        where = shown_uri(settings.uri)
        run_id = client.create_run(experiment_id(client, settings), run_name="doctor", tags={"doctor": "1"}).info.run_id
        try:
            client.log_metric(run_id, "doctor", 1.0)
            metric = client.get_run(run_id).data.metrics.get("doctor")
            client.log_text(run_id, "doctor", "doctor.txt")
            files = [item.path for item in client.list_artifacts(run_id)]
        finally:
            client.delete_run(run_id)
        found = [
            ok("mlflow run", f"{where}: a run with a metric and an artifact")
            if metric == 1.0 and files == ["doctor.txt"]
            else fail(
                "mlflow run", f"{where}: metric {metric}, artifacts {files}", "look at the server's artifact store"
            )
        ]
        name = f"facereel-doctor-{secrets.token_hex(4)}"
        client.create_registered_model(name)
        client.delete_registered_model(name)
        return [*found, ok("mlflow registry", f"{where}: a model was registered and removed")]


def check_server_clock(name: str, url: str, *, head: Callable[[str], str | None] | None = None) -> Finding:
    """The clock of an HTTP server, by the Date of its answer, whatever it answers."""
    before = time.time()
    said = (head or _date_of)(url)
    after = time.time()
    if said is None:
        return warn("clock", f"{name}: its answers have no date", "nothing to mend if its clock is right")
    offset = parsedate_to_datetime(said).timestamp() + SERVER_CLOCK_STEP_S / 2 - (before + after) / 2
    return judge_clock(name, offset, (after - before + SERVER_CLOCK_STEP_S) / 2)


def _date_of(url: str) -> str | None:
    import httpx

    said: str | None = httpx.head(url, timeout=10).headers.get("date")
    return said
