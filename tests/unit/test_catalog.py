"""Catalogs: every format and a prefix give the same rows; mistakes are named."""

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from infra.storage import ObjectNotFound, Storage
from ray_jobs.catalog import open_catalog

ROWS = [
    {"video_id": "001", "uri": "videos/a.mp4", "creator_id": "42", "age": 30.0, "views": 7},
    {"video_id": "002", "uri": "/abs/b.mp4", "creator_id": "42", "age": None, "views": 8},
    {"video_id": "003", "uri": "s3://bucket/c.mp4", "creator_id": None, "age": 12.0, "views": 9},
]


def write(path: Path, rows: list[dict[str, object]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [list(rows[0])] + [["" if value is None else str(value) for value in row.values()] for row in rows]
        path.write_text("".join(separator.join(line) + "\n" for line in lines))
    return str(path)


def read(uri: str) -> list[dict[str, object]]:
    connection = duckdb.connect()
    open_catalog(uri, Storage(), connection)
    rows: list[dict[str, object]] = (
        connection.sql("SELECT * FROM catalog ORDER BY video_id").to_arrow_table().to_pylist()
    )
    return rows


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".tsv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = read(write(tmp_path / f"catalog{suffix}", ROWS))
    assert [row["video_id"] for row in rows] == ["001", "002", "003"]  # ids stay text: 001 is not 1
    assert [row["uri"] for row in rows] == [f"{tmp_path}/videos/a.mp4", "/abs/b.mp4", "s3://bucket/c.mp4"]
    assert [row["creator_id"] for row in rows] == ["42", "42", None]
    assert [row["age"] for row in rows] == [30.0, None, 12.0]
    assert [row["views"] for row in rows] == [7, 8, 9]
    assert [row["etag"] for row in rows] == [None] * 3


def test_a_prefix_lists_media_with_their_etags(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/b.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    rows = read(str(tmp_path))
    assert [row["video_id"] for row in rows] == ["a.mp4", "sub/b.JPG"]
    assert [row["size"] for row in rows] == [1, 1]
    assert [row["etag"] for row in rows] == [Storage().stat(str(row["uri"])).etag for row in rows]


def test_the_same_row_twice_is_one_video(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "catalog.csv", [*ROWS, ROWS[0]]))) == 3


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty.csv", "video_id,uri\n", ["empty.csv", "empty"]),
        ("missing.csv", "id,uri\na,b\n", ["missing.csv", "video_id", "id, uri"]),
        ("missing2.csv", "id,path\na,b\n", ["video_id", "uri"]),
        ("twice.csv", "video_id,uri\na,b.mp4\na,c.mp4\n", ["'a'", "b.mp4", "c.mp4"]),
        ("differs.csv", "video_id,uri,views\na,b.mp4,1\na,b.mp4,2\n", ["'a'", "differ"]),
        ("hole.csv", "video_id,uri\na,\n", ["1 rows have no uri"]),
        ("broken.parquet", "this is no parquet", ["broken.parquet", "cannot be read as parquet"]),
        ("broken.jsonl", '{"video_id": ', ["broken.jsonl", "cannot be read as jsonl"]),
        ("ragged.csv", "video_id,uri\na,b,c,d\n", ["ragged.csv", "cannot be read as csv"]),
    ],
)
def test_a_bad_catalog_is_named(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read(str(tmp_path / name))
    for word in words:
        assert word in str(caught.value)


def test_a_missing_catalog_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound):
        read(str(tmp_path / "none.csv"))


def test_a_prefix_without_media_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no videos or images"):
        read(str(tmp_path))


def test_a_catalog_may_be_kept_within_a_folder(tmp_path):
    inside = tmp_path / "allowed"
    inside.mkdir()
    for name, uri in (("good", "a.mp4"), ("out", "/etc/passwd"), ("beside", f"{inside}-too/a.mp4"), ("up", "../b.mp4")):
        (inside / f"{name}.csv").write_text(f"video_id,uri\n1,{uri}\n")
    within = (str(inside),)
    open_catalog(str(inside / "good.csv"), Storage(), duckdb.connect(), within=within)
    for name in ("out", "beside", "up"):
        with pytest.raises(UserError, match="lies outside of"):
            open_catalog(str(inside / f"{name}.csv"), Storage(), duckdb.connect(), within=within)
