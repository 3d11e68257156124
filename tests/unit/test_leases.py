"""Leases: one writer at a time, dead ones give way, late ones are shut out."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

import infra.leases
from infra.errors import UserError
from infra.leases import TTL_S, Lease, LeaseHeld, LeaseLost, current_lease, refuse_if_held
from infra.storage import Storage, StorageUnavailable
from tests.storage_suite import s3_settings

ROOT = Path(__file__).resolve().parents[2]


def record_of(root: Path) -> tuple[Path, dict[str, object]]:
    path = max((root / "_leases").iterdir())
    return path, json.loads(path.read_text())


def change(root: Path, **values: object) -> None:
    path, record = record_of(root)
    path.write_text(json.dumps(record | values))


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with Lease(Storage(), str(tmp_path), "run 7"):
        start_s = time.monotonic()
        with pytest.raises(LeaseHeld) as refused:
            Lease(Storage(), str(tmp_path), "run 8")
        assert time.monotonic() - start_s < TTL_S / 2, "it does not wait for the end of the other one"
        with pytest.raises(LeaseHeld):
            refuse_if_held(Storage(), str(tmp_path))
    for words in ("run 7", os.uname().nodename, rf"pid {os.getpid()}, for \d+ s"):
        assert re.search(words, str(refused.value))


def test_a_lease_that_was_given_back_is_free(tmp_path: Path) -> None:
    first = Lease(Storage(), str(tmp_path), "one")
    first.release()
    refuse_if_held(Storage(), str(tmp_path))
    with Lease(Storage(), str(tmp_path), "two") as second:
        assert second.epoch > first.epoch
    assert len(list((tmp_path / "_leases").iterdir())) == 1, "earlier records are cleared"


def test_epochs_go_on_after_those_that_the_tables_have_seen(tmp_path: Path) -> None:
    with Lease(Storage(), str(tmp_path), "one", after=41 << 16) as lease:
        assert lease.epoch >> 16 == 42


def test_a_silent_holder_loses_its_lease_to_time(tmp_path: Path) -> None:
    with Lease(Storage(), str(tmp_path), "one"):
        # As a holder on another machine, of which only its record tells.
        then = (datetime.now(UTC) - timedelta(seconds=61)).isoformat()
        change(tmp_path, host="elsewhere", renewed_at=then)
        with Lease(Storage(), str(tmp_path), "two") as second:
            assert second.epoch >> 16 == 2


def test_a_holder_elsewhere_is_believed_until_then(tmp_path: Path) -> None:
    with Lease(Storage(), str(tmp_path), "one"):
        change(tmp_path, host="elsewhere", pid=1)
        with pytest.raises(LeaseHeld, match="elsewhere"):
            Lease(Storage(), str(tmp_path), "two")


def test_a_killed_holder_of_this_machine_gives_way_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom infra.leases import Lease\nfrom infra.storage import Storage\n"
        "lease = Lease(Storage(), sys.argv[1], 'one')\nprint('held', flush=True)\ntime.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeld, match=f"pid {child.pid}"):
        Lease(Storage(), str(tmp_path), "two")
    child.kill()
    child.wait()
    with Lease(Storage(), str(tmp_path), "two") as second:
        assert second.epoch >> 16 == 2


def test_a_process_id_that_was_given_anew_is_not_the_holder(tmp_path: Path) -> None:
    with Lease(Storage(), str(tmp_path), "one"):
        change(tmp_path, pid_started="1")
        refuse_if_held(Storage(), str(tmp_path))


def test_a_holder_notices_that_another_took_over(tmp_path: Path) -> None:
    lease = Lease(Storage(), str(tmp_path), "one", ttl_s=5)
    path, record = record_of(tmp_path)
    other = path.with_name("000000000002.json")
    Storage().put(str(other), json.dumps(record | {"token": "another"}).encode())
    lease._thread.join(60)
    with pytest.raises(LeaseLost, match="run again"):
        lease.check()
    lease.release()
    assert not record_of(tmp_path)[1]["released"], "the other one's lease is left alone"


def test_a_holder_whose_record_was_overwritten_has_lost_it(tmp_path: Path) -> None:
    with Lease(Storage(), str(tmp_path), "one", ttl_s=5) as lease:
        Storage().put(str(record_of(tmp_path)[0]), b"no lease")
        lease._thread.join(60)
        with pytest.raises(LeaseLost):
            lease.check()


def test_renewals_keep_it_and_without_them_it_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    with Lease(storage, str(tmp_path), "one", ttl_s=5) as lease:
        acquired_s = lease._renewed_s
        while lease._renewed_s == acquired_s:
            time.sleep(0.01)
        lease.check()

        def fails(uri: str, data: bytes) -> None:
            raise StorageUnavailable(uri)

        monkeypatch.setattr(storage, "put", fails)
        lease._renewed_s -= 6
        with pytest.raises(LeaseLost):
            lease.check()


def race(root: str, storage: Storage, num_writers: int) -> list[Lease]:
    won: list[Lease] = []
    refused: list[LeaseHeld] = []
    barrier = threading.Barrier(num_writers)

    def contend() -> None:
        barrier.wait()
        try:
            won.append(Lease(storage, root, "one of many"))
        except LeaseHeld as error:
            refused.append(error)

    threads = [threading.Thread(target=contend) for _ in range(num_writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(refused) == num_writers
    return won


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    for _ in range(5):
        (winner,) = race(str(tmp_path), Storage(), 8)
        winner.release()


def test_a_slow_contender_does_not_slip_in_below_a_later_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Storage()
    put_if_absent = slow.put_if_absent

    def delayed(uri: str, data: bytes) -> object:
        monkeypatch.undo()
        Lease(Storage(), str(tmp_path), "one").release()
        holders.append(Lease(Storage(), str(tmp_path), "two"))  # clears the record of the first
        return put_if_absent(uri, data)

    holders: list[Lease] = []
    monkeypatch.setattr(slow, "put_if_absent", delayed)
    with pytest.raises(LeaseHeld, match="two"):
        Lease(slow, str(tmp_path), "slow")
    holders[0].check()
    holders[0].release()


@pytest.fixture
def bucket() -> Iterator[Storage]:
    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="tables-bucket")
        storage = Storage(s3_settings(None))
        storage.put("s3://tables-bucket/warm-up", b"")
        yield storage


def test_in_a_bucket_too(bucket: Storage) -> None:
    (winner,) = race("s3://tables-bucket/tables", bucket, 4)
    with pytest.raises(LeaseHeld):
        Lease(bucket, "s3://tables-bucket/tables", "late")
    winner.release()
    with Lease(bucket, "s3://tables-bucket/tables", "next") as second:
        assert second.epoch > winner.epoch


def test_a_server_that_lets_two_puts_succeed_still_has_one_holder(
    bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers check If-None-Match without a lock: the last put stays."""
    in_step = threading.Barrier(4)

    def careless(uri: str, data: bytes) -> object:
        in_step.wait()  # all have looked, and found no holder
        return bucket.put(uri, data)

    monkeypatch.setattr(bucket, "put_if_absent", careless)
    monkeypatch.setattr(infra.leases, "SETTLE_S", 0)
    monkeypatch.setattr(infra.leases, "is_s3", lambda _: in_step.wait() >= 0)  # all have put
    won = race("s3://tables-bucket/tables", bucket, 4)
    assert len(won) == 1
    won[0].release()


def test_what_is_no_lease_is_named(tmp_path: Path) -> None:
    with Lease(Storage(), str(tmp_path), "one"):
        pass
    record_of(tmp_path)[0].write_text("{}")
    with pytest.raises(UserError, match=r"000000000001\.json is no lease"):
        current_lease(Storage(), str(tmp_path))
