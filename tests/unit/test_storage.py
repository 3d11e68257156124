"""Storage on the local disk and on an S3 server in this process: the common suite, and what is special to each."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from infra.settings import StorageSettings
from infra.storage import (
    AccessDenied,
    AlreadyExists,
    InvalidUri,
    ObjectNotFound,
    Storage,
    StorageTimeout,
    StorageUnavailable,
    is_s3,
    join,
)
from tests.storage_suite import *  # noqa: F403
from tests.storage_suite import Place, s3_settings


@pytest.fixture(scope="session")
def moto_endpoint():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def moto_place(moto_endpoint):
    client = boto3.client(
        "s3",
        endpoint_url=moto_endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="bucket")
    storage = Storage(s3_settings(moto_endpoint))
    yield Place(storage, "s3://bucket/folder", storage.put)
    requests.post(f"{moto_endpoint}/moto-api/reset", timeout=10)


@pytest.fixture
def local_place(tmp_path):
    storage = Storage(StorageSettings(read_ahead_bytes=64))
    return Place(storage, str(tmp_path / "root"), lambda uri, data: Path(uri).write_bytes(data))


@pytest.fixture(params=["local", "moto"])
def place(request):
    return request.getfixturevalue(f"{request.param}_place")


def test_uris_are_told_apart_and_joined():
    assert is_s3("s3://bucket/key")
    assert not is_s3("/s3://folder")
    assert join("s3://bucket", "a/b", "c.mp4") == "s3://bucket/a/b/c.mp4"
    assert join("/folder/", "/a") == "/folder/a"
    assert join("/", "a") == "/a"
    assert join("folder", "a", "") == "folder/a/"


@pytest.mark.parametrize(
    "uri", ["", "gs://bucket/key", "https://host/a.mp4", "s3://", "s3:///key", "s3://bucket", "a\0b"]
)
def test_uri_that_names_no_object_is_refused(uri):
    with pytest.raises(InvalidUri) as caught:
        Storage(s3_settings("http://127.0.0.1:9")).stat(uri)
    assert caught.value.reason == "invalid_uri"
    assert "\n" not in str(caught.value)


def test_absolute_uris_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage()
    assert storage.absolute("videos/a.mp4") == str(tmp_path / "videos/a.mp4")
    assert storage.absolute("file:///videos/a%20b.mp4") == "/videos/a b.mp4"
    assert storage.absolute("s3://bucket/a%20b") == "s3://bucket/a%20b"


# The local disk


def test_file_uris_are_decoded_and_listed_as_file_uris(tmp_path):
    storage, root = Storage(), f"file://{tmp_path}"
    (tmp_path / "a b#1.mp4").write_bytes(b"data")
    assert [stat.uri for stat in storage.list_prefix(root)] == [f"{root}/a%20b%231.mp4"]
    assert storage.read_all(f"{root}/a%20b%231.mp4") == b"data"
    assert storage.read_all(f"file://localhost{tmp_path}/a b#1.mp4") == b"data"
    with pytest.raises(InvalidUri):
        storage.stat("file://elsewhere/a.mp4")


def test_folder_device_and_path_below_a_file_are_no_objects(tmp_path):
    storage = Storage()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    for name in ("", "file/below", "x" * 300):
        with pytest.raises(ObjectNotFound):
            storage.open_reader(str(tmp_path / name))
    with pytest.raises(ObjectNotFound):
        storage.read_all(str(tmp_path / "fifo"))
    with pytest.raises(ObjectNotFound):
        next(storage.list_prefix(str(tmp_path / "file")))
    for name in ("file/below", "file/far/below"):
        with pytest.raises(ObjectNotFound):
            storage.put_if_absent(str(tmp_path / name), b"")


def test_listing_follows_links_but_no_loops_and_skips_what_is_no_file(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.mp4").write_bytes(b"a")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "sub/up").symlink_to(root)
    (root / "dangling").symlink_to(tmp_path / "none")
    os.mkfifo(root / "fifo")
    assert [stat.uri for stat in Storage().list_prefix(str(root))] == [str(root / "linked/a.mp4")]


def test_listing_refuses_a_name_that_is_not_unicode(tmp_path):
    (tmp_path / os.fsdecode("视频.mp4".encode("gbk"))).write_bytes(b"")
    with pytest.raises(InvalidUri, match="not UTF-8"):
        list(Storage().list_prefix(str(tmp_path)))


def test_failed_put_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    storage, path = Storage(), tmp_path / "file"
    storage.put(str(path), b"old")

    def full(descriptor: int) -> None:
        # While it is written the new file is invisible to listings.
        assert [stat.uri for stat in storage.list_prefix(str(tmp_path))] == [str(path)]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageUnavailable, match="No space left"):
        storage.put(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_of_many_local_writers_one_finds_the_place_empty(tmp_path):
    storage, uri = Storage(), str(tmp_path / "lease")

    def claim(n: int) -> bool:
        try:
            storage.put_if_absent(uri, str(n).encode())
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(64)))
    assert won.count(True) == 1
    assert storage.read_all(uri) == str(won.index(True)).encode()


def test_written_files_have_ordinary_permissions(tmp_path):
    Storage().put(str(tmp_path / "by-storage"), b"")
    (tmp_path / "by-python").write_bytes(b"")
    assert (tmp_path / "by-storage").stat().st_mode == (tmp_path / "by-python").stat().st_mode


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EACCES, AccessDenied),
        (errno.EPERM, AccessDenied),
        (errno.ETIMEDOUT, StorageTimeout),
        (errno.EIO, StorageUnavailable),
        (errno.ENOENT, ObjectNotFound),
    ],
)
def test_operating_system_errors_are_typed(tmp_path, monkeypatch, code, expected):
    def fail(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(expected, match=os.strerror(code)):
        Storage().open_reader(str(tmp_path / "file"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_denied(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(0)
    with pytest.raises(AccessDenied):
        Storage().read_all(str(path))


# S3


def test_missing_bucket_is_not_found(moto_place):
    storage, uri = moto_place.storage, "s3://no-such-bucket/a.mp4"
    for use in (storage.stat, storage.read_all, lambda uri: storage.put(uri, b""), storage.delete):
        with pytest.raises(ObjectNotFound, match="no-such-bucket"):
            use(uri)
    for listed in ("s3://no-such-bucket", "s3://no-such-bucket/a"):
        with pytest.raises(ObjectNotFound, match="NoSuchBucket"):
            next(storage.list_prefix(listed))


def test_empty_bucket_lists_nothing(moto_place):
    assert list(moto_place.storage.list_prefix("s3://bucket")) == []


def test_folder_markers_are_no_objects(moto_place):
    storage = moto_place.storage
    storage.put("s3://bucket/folder/", b"")
    storage.put("s3://bucket/folder/a.mp4", b"a")
    assert [stat.uri for stat in storage.list_prefix("s3://bucket/folder")] == ["s3://bucket/folder/a.mp4"]


def test_wrong_credentials_are_denied(moto_place, moto_endpoint):
    storage = moto_place.storage
    storage.put("s3://bucket/a.mp4", b"a")
    requests.post(f"{moto_endpoint}/moto-api/reset-auth", data=b"0", timeout=10)
    try:
        for use in (storage.stat, storage.read_all, storage.open_reader, lambda uri: storage.put(uri, b"b")):
            with pytest.raises(AccessDenied, match=r"s3://bucket/a.mp4 \(at http://127.0.0.1:\d+\)"):
                use("s3://bucket/a.mp4")
        with pytest.raises(AccessDenied):
            list(storage.list_prefix("s3://bucket"))
    finally:
        requests.post(f"{moto_endpoint}/moto-api/reset-auth", data=b"Infinity", timeout=10)


@pytest.mark.parametrize("profile", [None, "none-such"])
def test_no_credentials_at_all_are_denied(tmp_path, monkeypatch, profile):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    storage = Storage(StorageSettings(endpoint_url=f"http://127.0.0.1:9/{profile}"))
    with pytest.raises(AccessDenied):
        storage.stat("s3://bucket/a.mp4")
    with pytest.raises(AccessDenied):
        storage.delta_options("s3://bucket/table")


def test_delta_options_follow_the_settings():
    options = Storage(
        s3_settings("https://host:9000/", addressing_style="virtual", session_token="token")
    ).delta_options("s3://bucket/table")
    assert options["AWS_ENDPOINT_URL"] == "https://bucket.host:9000"
    assert options["AWS_ALLOW_HTTP"] == "false"
    assert options["AWS_SESSION_TOKEN"] == "token"
    aws = Storage(StorageSettings(region="eu-west-1", access_key_id="key", secret_access_key="secret"))
    assert "AWS_ENDPOINT_URL" not in aws.delta_options("s3://bucket/table")
    assert aws.delta_options("s3://bucket/table")["AWS_REGION"] == "eu-west-1"
    assert Storage().delta_options("/folder/table") == {}


def test_secrets_are_not_shown():
    settings = s3_settings("http://127.0.0.1:9", secret="hunter2", session_token="hunter3")
    assert "hunter" not in f"{settings!r} {Storage(settings)!r} {settings.model_dump_json()}"
