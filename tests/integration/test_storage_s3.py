"""The storage suite against a real S3 server, named by FACEREEL_TEST_S3_ENDPOINT, _KEY, _SECRET and _BUCKET."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import boto3
import pytest

from infra.storage import AccessDenied, ObjectNotFound, Storage, join
from tests.storage_suite import *  # noqa: F403
from tests.storage_suite import READ_AHEAD_BYTES, Place, data_of, s3_settings

ENDPOINT = os.environ.get("FACEREEL_TEST_S3_ENDPOINT", "")
KEY = os.environ.get("FACEREEL_TEST_S3_KEY", "")
SECRET = os.environ.get("FACEREEL_TEST_S3_SECRET", "")
BUCKET = os.environ.get("FACEREEL_TEST_S3_BUCKET", "facereel-test")

if not ENDPOINT:
    pytest.skip("FACEREEL_TEST_S3_ENDPOINT names no S3 server to test against", allow_module_level=True)


@pytest.fixture(scope="session")
def bucket():
    client = boto3.client(
        "s3",
        endpoint_url=ENDPOINT,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )
    if BUCKET not in [found["Name"] for found in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}"


@pytest.fixture
def place(bucket):
    storage = Storage(s3_settings(ENDPOINT, KEY, SECRET))
    root = join(bucket, uuid.uuid4().hex)
    yield Place(storage, root, storage.put)
    with suppress(ObjectNotFound), ThreadPoolExecutor(8) as pool:
        list(pool.map(storage.delete, [stat.uri for stat in storage.list_prefix(root)]))


def test_wrong_secret_is_denied(place):
    uri = join(place.root, "object")
    place.storage.put(uri, b"data")
    stranger = Storage(s3_settings(ENDPOINT, KEY, "not the secret"))
    for use in (stranger.stat, stranger.read_all, stranger.open_reader, lambda uri: stranger.put(uri, b"theirs")):
        with pytest.raises(AccessDenied, match=ENDPOINT):
            use(uri)
    with pytest.raises(AccessDenied):
        next(stranger.list_prefix(place.root))
    assert place.storage.read_all(uri) == b"data"


def test_missing_bucket_is_not_found(place):
    missing = f"s3://missing-{uuid.uuid4().hex}"
    for use in (place.storage.stat, place.storage.read_all, lambda uri: place.storage.put(uri, b"")):
        with pytest.raises(ObjectNotFound):
            use(join(missing, "object"))
    with pytest.raises(ObjectNotFound):
        next(place.storage.list_prefix(missing))


def test_video_sized_object_costs_few_requests(place):
    uri, data = join(place.root, "video"), data_of(24 << 20)
    place.storage.put(uri, data)
    changed = place.storage.settings.model_copy(update={"read_ahead_bytes": 1 << 20})
    with Storage(changed).open_reader(uri) as reader:
        assert b"".join(iter(lambda: reader.read(READ_AHEAD_BYTES << 10), b"")) == data
        assert reader.num_requests <= 9
