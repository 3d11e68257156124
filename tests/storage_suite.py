"""What every kind of storage must do; test modules import all of it and bring the fixture ``place``."""

import io
import os
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.settings import StorageSettings
from infra.storage import AlreadyExists, ObjectChanged, ObjectNotFound, Storage, join

READ_AHEAD_BYTES = 64


@dataclass(frozen=True)
class Place:
    """A storage and an empty folder in it; ``overwrite`` changes an object behind the back of its readers."""

    storage: Storage
    root: str
    overwrite: Callable[[str, bytes], object]


def s3_settings(endpoint: str, key: str = "key", secret: str = "secret", **changes: object) -> StorageSettings:
    return StorageSettings.model_validate(
        {
            "endpoint_url": endpoint,
            "region": "us-east-1",
            "access_key_id": key,
            "secret_access_key": secret,
            "read_ahead_bytes": READ_AHEAD_BYTES,
            **changes,
        }
    )


def data_of(num_bytes: int) -> bytes:
    return random.Random(num_bytes).randbytes(num_bytes)


def test_object_is_stored_described_and_replaced(place):
    uri = join(place.root, "deep/er", "a b.bin")
    written = place.storage.put(uri, b"first")
    assert written == place.storage.stat(uri)
    assert (written.uri, written.size_bytes) == (uri, 5)
    assert place.storage.read_all(uri) == b"first"
    again = place.storage.put(uri, b"other content")
    assert place.storage.read_all(uri) == b"other content"
    assert again.etag != written.etag
    place.storage.delete(uri)
    assert not place.storage.exists(uri)


def test_missing_object_is_not_found_by_every_read(place):
    uri = join(place.root, "none.mp4")
    for read in (
        place.storage.stat,
        place.storage.read_all,
        place.storage.open_reader,
        lambda uri: place.storage.read_range(uri, 0, 10),
    ):
        with pytest.raises(ObjectNotFound, match="none"):
            read(uri)
    assert not place.storage.exists(uri)
    place.storage.delete(uri)


def test_put_if_absent_keeps_what_is_there(place):
    uri = join(place.root, "lease")
    assert place.storage.put_if_absent(uri, b"mine") == place.storage.stat(uri)
    with pytest.raises(AlreadyExists, match="lease"):
        place.storage.put_if_absent(uri, b"theirs")
    assert place.storage.read_all(uri) == b"mine"


@pytest.mark.parametrize("num_bytes", [10, 17 << 20])  # in one request, and in parts
def test_put_file_if_absent_keeps_what_is_there(place, tmp_path, num_bytes):
    uri, source = join(place.root, "video"), tmp_path / "source"
    source.write_bytes(bytes(num_bytes))
    assert place.storage.put_file(uri, source, if_absent=True) == place.storage.stat(uri)
    source.write_bytes(b"another")
    with pytest.raises(AlreadyExists, match="video"):
        place.storage.put_file(uri, source, if_absent=True)
    assert place.storage.read_all(uri) == bytes(num_bytes)


def test_listing_is_of_the_folder_sorted_like_keys_and_begins_with_the_uri_given(place):
    names = ["a.txt", "a/b/1.mp4", "a/ä%41 #1?.mp4", "a/+.mp4", "a0", "ab/c.mp4"]
    for name in names:
        place.storage.put(join(place.root, name), name.encode())
    listed = list(place.storage.list_prefix(place.root))
    assert [stat.uri for stat in listed] == [join(place.root, name) for name in sorted(names, key=str.encode)]
    assert listed == [place.storage.stat(stat.uri) for stat in listed]
    inside = [join(place.root, name) for name in sorted(names, key=str.encode) if name.startswith("a/")]
    for folder in ("a", "a/"):
        assert [stat.uri for stat in place.storage.list_prefix(join(place.root, folder))] == inside


def test_listing_of_nothing_is_not_found(place):
    place.storage.put(join(place.root, "videos/a.mp4"), b"a")
    with pytest.raises(ObjectNotFound, match="vide"):
        next(place.storage.list_prefix(join(place.root, "vide")))


def test_listing_goes_past_a_page_of_1000(place):
    uris = [join(place.root, f"{n:05d}") for n in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: place.storage.put(uri, b"x"), uris))
    assert [stat.uri for stat in place.storage.list_prefix(place.root)] == uris


def test_range_is_cut_at_the_end_and_pinned_to_an_etag(place):
    uri, data = join(place.root, "object"), data_of(1000)
    etag = place.storage.put(uri, data).etag
    for start, end in ((0, 1), (10, 990), (990, 5000), (1000, 1001), (4000, 5000), (7, 7)):
        assert place.storage.read_range(uri, start, end) == data[start:end]
        assert place.storage.read_range(uri, start, end, etag) == data[start:end]
        assert place.storage.read_range(uri, start, end, f'"{etag}"') == data[start:end]
        with pytest.raises(ObjectChanged, match="object"):
            place.storage.read_range(uri, start, end, "0123456789abcdef0123456789abcdef")


READS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.one_of(st.none(), st.integers(-1, 700))),
        st.tuples(st.just("readinto"), st.integers(0, 300)),
        st.tuples(st.just("seek"), st.integers(0, 1200), st.just(os.SEEK_SET)),
        st.tuples(st.just("seek"), st.integers(-1200, 1200), st.just(os.SEEK_CUR)),
        st.tuples(st.just("seek"), st.integers(-1200, 300), st.just(os.SEEK_END)),
    ),
    max_size=15,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.sampled_from([0, 1, 64, 65, 1000]), read_ahead=st.sampled_from([1, 64, 300]), reads=READS)
def test_reader_answers_as_bytes_in_memory_do(place, size, read_ahead, reads):
    data, uri = data_of(size), join(place.root, f"object-{size}")
    if not place.storage.exists(uri):
        place.storage.put(uri, data)
    memory = io.BytesIO(data)
    changed = place.storage.settings.model_copy(update={"read_ahead_bytes": read_ahead})
    with Storage(changed).open_reader(uri) as reader:
        for action, amount, *whence in reads:
            if action == "read":
                assert reader.read(amount) == memory.read(amount)
            elif action == "readinto":
                ours, theirs = bytearray(amount), bytearray(amount)
                assert reader.readinto(ours) == memory.readinto(theirs)
                assert ours == theirs
            else:
                origin = {os.SEEK_SET: 0, os.SEEK_CUR: memory.tell(), os.SEEK_END: size}[whence[0]]
                if origin + amount < 0:
                    with pytest.raises(ValueError, match="before the start"):
                        reader.seek(amount, *whence)
                else:
                    assert reader.seek(amount, *whence) == memory.seek(amount, *whence)
            assert reader.tell() == memory.tell()


def test_reader_asks_for_ever_larger_blocks_in_sequence_and_keeps_both_ends(place):
    uri, data = join(place.root, "object"), data_of(20 * READ_AHEAD_BYTES)
    place.storage.put(uri, data)
    with place.storage.open_reader(uri) as reader:
        while reader.read(READ_AHEAD_BYTES // 3):
            pass
        # Blocks of 1, 2, 4, 4, 4, 4 times the read-ahead, and the last one.
        assert (reader.num_requests, reader.bytes_read) == (7, len(data))
    with place.storage.open_reader(uri) as reader:
        reader.read(10)
        reader.seek(-10, os.SEEK_END)
        assert reader.read() == data[-10:]
        num_requests = reader.num_requests
        reader.seek(10)
        assert reader.read(10) == data[10:20]
        reader.seek(-5, os.SEEK_END)
        assert reader.read() == data[-5:]
        assert reader.num_requests == num_requests
        assert reader.bytes_read <= 2 * READ_AHEAD_BYTES


def test_reader_notices_that_the_object_changed(place):
    uri, data = join(place.root, "object"), data_of(1000)
    etag = place.storage.put(uri, data).etag
    with place.storage.open_reader(uri, etag) as reader:
        assert reader.stat == place.storage.stat(uri)
        assert reader.read(10) == data[:10]
        place.overwrite(uri, data_of(999))
        reader.seek(900)
        with pytest.raises(ObjectChanged, match="object"):
            reader.read(10)
    with pytest.raises(ObjectChanged, match="object"):
        place.storage.open_reader(uri, etag)


def test_closed_reader_refuses(place):
    uri = join(place.root, "object")
    place.storage.put(uri, b"data")
    with place.storage.open_reader(uri) as reader:
        pass
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read()


@pytest.mark.parametrize("container_format", ["mp4", "matroska", "mpegts"])
def test_pyav_decodes_through_the_reader(place, container_format):
    memory, uri = io.BytesIO(), join(place.root, "video")
    with av.open(memory, "w", container_format) as container:
        stream = container.add_stream("mpeg4", 25)
        stream.width = stream.height = 64
        for n in range(30):
            picture = np.full((64, 64, 3), 8 * n, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    place.storage.put(uri, memory.getvalue())
    memory.seek(0)
    with place.storage.open_reader(uri) as reader, av.open(reader) as container, av.open(memory) as expected:
        ours = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        theirs = [frame.to_ndarray(format="rgb24") for frame in expected.decode(video=0)]
    assert len(ours) == 30
    assert np.array_equal(ours, theirs)


def test_storage_travels_by_pickle(place):
    uri = join(place.root, "object")
    place.storage.put(uri, b"data")
    assert pickle.loads(pickle.dumps(place.storage)).read_all(uri) == b"data"


def test_arrow_reads_with_the_same_settings(place):
    table, buffer, uri = pa.table({"a": [1, 2, 3]}), io.BytesIO(), join(place.root, "table.parquet")
    pq.write_table(table, buffer)
    place.storage.put(uri, buffer.getvalue())
    filesystem, path = place.storage.arrow_filesystem(uri)
    assert pq.read_table(path, filesystem=filesystem) == table


def test_delta_commits_once_with_the_same_settings(place):
    uri = join(place.root, "table")
    options = place.storage.delta_options(uri)
    for sequence in range(3):
        write_deltalake(
            uri,
            pa.table({"a": [sequence]}),
            mode="append",
            storage_options=options,
            commit_properties=CommitProperties(app_transactions=[Transaction("run", sequence)]),
        )
    table = DeltaTable(uri, storage_options=options)
    assert table.transaction_version("run") == 2
    assert sorted(table.to_pyarrow_table()["a"].to_pylist()) == [0, 1, 2]
