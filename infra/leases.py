"""One writer at a time: a lease beside the tables, renewed while its holder lives, numbered to fence late ones."""

import contextlib
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import TypedError, UserError
from infra.hosts import boot_id, process_started, user_name
from infra.storage import AlreadyExists, ObjectNotFound, Storage, StorageError, StorageUnavailable, is_s3, join

FOLDER = "_leases"
TTL_S = 60.0
SETTLE_S = 1.0
MAX_TRIES = 10
# An epoch is the number of a lease and, below it, random bits: should a careless server let two writers make the same
# number, their epochs still differ, and the tables shut out the lower one.
RANDOM_BITS = 16


class LeaseHeld(UserError):
    """Another process holds the lease; the message says who, where and since when."""


class LeaseLost(TypedError):
    """This process no longer holds its lease: it could not renew it in time, or another process has taken over."""

    reason = "lease_lost"


class LeaseRecord(BaseModel):
    """What a lease's object holds."""

    model_config = ConfigDict(frozen=True)

    token: str = Field(description="random, so that a holder knows its own record")
    epoch: int = Field(description="what the tables know the holder by; grows from holder to holder")
    holder: str = Field(description="what the holder is doing, for people")
    host: str = Field(description="host name")
    boot_id: str = Field(description="names the boot of the host's kernel; empty where unknown")
    pid: int = Field(description="process id on the host")
    pid_started: str = Field(description="start time of that process as the kernel counts it; empty where unknown")
    user: str = Field(description="login name")
    acquired_at: datetime
    renewed_at: datetime
    ttl_s: float = Field(gt=0, description="seconds after the last renewal at which the lease ends by itself")
    released: bool = False

    def age_s(self, now: datetime) -> float:
        """Seconds since it was acquired."""
        return (now - self.acquired_at).total_seconds()

    def silent_s(self, now: datetime) -> float:
        """Seconds since the holder's last sign of life."""
        return (now - self.renewed_at).total_seconds()

    def is_live(self, now: datetime) -> bool:
        """Whether the holder may still be writing: neither released, nor silent for too long, nor seen to be dead."""
        return not self.released and self.silent_s(now) <= self.ttl_s and not self._is_seen_dead()

    def _is_seen_dead(self) -> bool:
        """Whether the holder was a process of this machine that is gone; of other machines only time tells."""
        if not self.boot_id or self.host != socket.gethostname() or self.boot_id != boot_id():
            return False
        return process_started(self.pid) != self.pid_started


class Lease:
    """The right to write below ``root``; use it as a context manager.

    Leases are objects ``<root>/_leases/<number>.json``. The next number is made by a put-if-absent, so of several that
    want it one succeeds; a thread renews the record. ``epoch`` grows with every holder and goes into every Delta commit
    (`DeltaStore.fence`), so a holder that slept through its lease cannot commit after the next one has begun.

    Args:
        storage: where ``root`` lies.
        root: the folder or prefix.
        holder: what the holder is doing, shown to whoever is refused.
        ttl_s: seconds without a renewal after which the lease ends by itself.
        after: the epoch must be higher than this (the highest that the tables have seen).

    Raises:
        LeaseHeld: another process holds it.
        StorageError: the place cannot be read or written.
    """

    def __init__(self, storage: Storage, root: str, holder: str, *, ttl_s: float = TTL_S, after: int = 0) -> None:
        self._storage = storage
        self._root = root
        self._ttl_s = ttl_s
        self._stop = threading.Event()
        self._is_lost = False
        self._number, self._record = self._acquire(holder, after)
        self.epoch = self._record.epoch
        self._renewed_s = time.monotonic()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def check(self) -> None:
        """Raise `LeaseLost` unless the lease is surely held; to be called before every commit."""
        if self._is_lost or time.monotonic() - self._renewed_s > self._ttl_s:
            raise LeaseLost(
                f"{self._root}: this run's right to write has passed (no renewal reached storage within "
                f"{self._ttl_s:g} s, or another process has taken over); what is committed is safe, run again"
            )

    def release(self) -> None:
        """Give the lease back, so that the next holder need not wait; once is enough."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if not self._is_lost:
            # What cannot be given back ends by itself.
            with contextlib.suppress(StorageError):
                self._put(self._record.model_copy(update={"released": True}))

    def _acquire(self, holder: str, after: int) -> tuple[int, LeaseRecord]:
        for attempt in range(1, MAX_TRIES + 1):
            found = refuse_if_held(self._storage, self._root)
            number = max(found[0] if found is not None else 0, after >> RANDOM_BITS) + 1
            now = datetime.now(UTC)
            record = LeaseRecord(
                token=secrets.token_hex(16),
                epoch=(number << RANDOM_BITS) + secrets.randbits(RANDOM_BITS),
                holder=holder,
                host=socket.gethostname(),
                boot_id=boot_id(),
                pid=os.getpid(),
                pid_started=process_started(os.getpid()),
                user=user_name(),
                acquired_at=now,
                renewed_at=now,
                ttl_s=self._ttl_s,
            )
            try:
                self._storage.put_if_absent(_uri(self._root, number), record.model_dump_json().encode())
            except AlreadyExists:
                pass  # perhaps by ourselves, with the answer lost: read it back
            except StorageUnavailable:
                # Also what S3 answers to several conditional puts at once: the next look tells who was first.
                if attempt == MAX_TRIES:
                    raise
            if is_s3(self._root):
                time.sleep(SETTLE_S)  # some servers let several puts of one moment succeed; the last one stays
            # The newest one, not this one: a slow contender may have made anew what a later holder had cleared.
            stored = current_lease(self._storage, self._root)
            if stored is not None and stored[0] == number and stored[1].token == record.token:
                self._forget_before(number)
                return number, record
        raise StorageUnavailable(f"{self._root}: no lease could be made in {MAX_TRIES} tries")

    def _keep(self) -> None:
        while not self._stop.wait(self._ttl_s / 5):
            try:
                found = current_lease(self._storage, self._root)
                if found is None or found[0] != self._number or found[1].token != self._record.token:
                    self._is_lost = True
                    return
                self._record = self._record.model_copy(update={"renewed_at": datetime.now(UTC)})
                before_s = time.monotonic()
                self._put(self._record)
                self._renewed_s = before_s
            except StorageError:
                continue  # until the time to live is over, which `check` watches
            except UserError:  # somebody wrote there what is no lease
                self._is_lost = True
                return

    def _put(self, record: LeaseRecord) -> None:
        self._storage.put(_uri(self._root, self._number), record.model_dump_json().encode())

    def _forget_before(self, number: int) -> None:
        with contextlib.suppress(StorageError):
            for stat in list(self._storage.list_prefix(join(self._root, FOLDER))):
                if _number(stat.uri) < number:
                    self._storage.delete(stat.uri)


def refuse_if_held(storage: Storage, root: str) -> tuple[int, LeaseRecord] | None:
    """Raise `LeaseHeld` if another process holds the lease now, else what `current_lease` gives; writes nothing.

    An early word for whoever would be refused later, after minutes of preparation.
    """
    found = current_lease(storage, root)
    if found is not None and found[1].is_live(datetime.now(UTC)):
        raise LeaseHeld(_refusal(root, found[1]))
    return found


def current_lease(storage: Storage, root: str) -> tuple[int, LeaseRecord] | None:
    """The newest lease of ``root`` and its number, live or not; None where there never was one."""
    while True:
        try:
            numbers = [_number(stat.uri) for stat in storage.list_prefix(join(root, FOLDER))]
        except ObjectNotFound:
            return None
        if not any(numbers):
            return None
        record = _read(storage, root, max(numbers))
        if record is not None:
            return max(numbers), record


def _read(storage: Storage, root: str, number: int) -> LeaseRecord | None:
    uri = _uri(root, number)
    try:
        return LeaseRecord.model_validate_json(storage.read_all(uri))
    except ObjectNotFound:
        return None
    except ValidationError as error:
        raise UserError(f"{uri} is no lease ({error.error_count()} errors): remove it if no run is active") from error


def _uri(root: str, number: int) -> str:
    return join(root, FOLDER, f"{number:012d}.json")


def _number(uri: str) -> int:
    stem = uri.rsplit("/", 1)[-1].removesuffix(".json")
    return int(stem) if stem.isdigit() else 0


def _refusal(root: str, record: LeaseRecord) -> str:
    now = datetime.now(UTC)
    return (
        f"{root}: another process is writing there: {record.holder} (user {record.user}, host {record.host}, "
        f"pid {record.pid}, for {duration(record.age_s(now))}, last sign of life {record.silent_s(now):.0f} s ago). "
        f"Wait for it or stop it; the lease of a dead writer ends {record.ttl_s:g} s after its last sign of life"
    )


def duration(seconds: float) -> str:
    """A length of time in words, in the largest unit that it has at least two of."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
