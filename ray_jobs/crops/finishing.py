"""From staged crops to the dataset: people alone in their frame, near-duplicates, ranks, statistics, files."""

import io
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from infra.scanning import scratch_database
from infra.storage import Storage, join
from ray_jobs.crops.dataset import DatasetRules, SplitStatistics
from ray_jobs.crops.staging import Staging

ROWS_PER_PART = 2_000
ROW_GROUP = 500
HASH_BITS = 64
# Columns of a video in a finished dataset, beside its labels; then those of a crop.
VIDEO_COLUMNS = ("video_id", "creator_id", "age", "remarks", "source")
CROP_COLUMNS = (
    *("frame_index", "face", "pts_s", "confidence", "size_px", "sharpness", "brightness", "yaw_deg", "roll_deg"),
    *("faces_in_frame", "perceptual_hash"),
)
# Of two near-duplicates on different sides the one goes whose side comes later here: what measures stays.
_SIDES = ("test", "val", "train")


@dataclass(frozen=True, slots=True)
class Finished:
    """What was written, and what was left out."""

    parts: dict[str, tuple[str, ...]]
    splits: dict[str, SplitStatistics]
    removed_videos: dict[str, int]  # videos without any crop in the dataset, by reason
    dropped_frames: dict[str, int]  # frames or crops that are not in it, by cause
    removals: list[tuple[str, str]]  # (source, reason) of every such video
    digest: str  # SHA-256 over ids, frames, splits and labels of all crops, in order


def finish(
    staging: Staging,
    root: str,
    storage: Storage,
    labels: Sequence[str],
    *,
    crop_size: int,
    rules: DatasetRules,
) -> Finished:
    """Choose, order and write the crops: the same staged rows give the same bytes.

    Args:
        staging: The extracted videos, all of them.
        root: The dataset's folder.
        storage: Where it lies.
        labels: The label columns.
        crop_size: Side of the crops, pixels.
        rules: Which crops are kept.
    """
    with (
        TemporaryDirectory(prefix="facereel-crops-") as folder,
        scratch_database(folder) as connection,
        PictureFile(Path(folder) / "pictures") as pictures,
    ):
        connection.register("staged", _without_pictures(staging, pictures))
        connection.execute("CREATE TABLE rows AS SELECT * FROM staged")
        connection.unregister("staged")
        dropped = Counter[str]()
        for cause, number in connection.execute(
            "SELECT d.key, sum(d.value)::BIGINT FROM (SELECT unnest(map_entries(dropped)) AS d FROM rows "
            "WHERE coalesce(face, 0) = 0) GROUP BY ALL"
        ).fetchall():
            dropped[cause] += number
        connection.execute(
            """
            CREATE TABLE crops AS SELECT *, row_number() OVER (ORDER BY video_id, frame_index, face) AS number
            FROM rows WHERE face IS NOT NULL AND ($all OR faces_in_frame <= 1)
            """,
            {"all": not rules.one_person},
        )
        dropped["several_people"] += _count(connection, "rows WHERE face IS NOT NULL") - _count(connection, "crops")
        dropped["near_duplicate_of_other_split"] += _mark_near_duplicates(connection, rules.near_duplicate_bits)
        removals = _removals(connection)
        _rank(connection, labels)
        splits = {
            split: _statistics(connection, split, labels, crop_size**2)
            for (split,) in connection.execute("SELECT DISTINCT split FROM ranked ORDER BY ALL").fetchall()
        }
        digest = _digest(connection, labels)
        parts = {split: tuple(_write(connection, pictures, root, storage, split, labels)) for split in splits}
    reasons = Counter(reason for _, reason in removals)
    return Finished(parts, splits, dict(sorted(reasons.items())), dict(sorted((+dropped).items())), removals, digest)


class PictureFile:
    """The bytes of all pictures in one local file, to be read in any order: databases sort them badly."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._ends = array("q", [0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, pictures: pa.Array) -> None:
        """Append pictures (binary, null for none), which are numbered on."""
        for picture in pictures:
            size = 0 if not picture.is_valid else self._file.write(picture.as_buffer())
            self._ends.append(self._ends[-1] + size)

    def take(self, numbers: Sequence[int]) -> pa.Array:
        """The pictures of these numbers."""
        found = []
        for number in numbers:
            self._file.seek(self._ends[number])
            found.append(self._file.read(self._ends[number + 1] - self._ends[number]))
        return pa.array(found, pa.binary())


def _without_pictures(staging: Staging, pictures: PictureFile) -> pa.RecordBatchReader:
    """The staged rows with ``picture``, a number in the file, instead of ``crop``."""
    schema = staging.schema()
    position = schema.get_field_index("crop")

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in staging.batches():
            first = len(pictures)
            pictures.add(batch.column(position))
            numbers = pa.array(range(first, first + batch.num_rows), pa.int64())
            columns = [numbers if index == position else column for index, column in enumerate(batch.columns)]
            yield pa.RecordBatch.from_arrays(columns, schema=numbered)

    numbered = schema.set(position, pa.field("picture", pa.int64()))
    return pa.RecordBatchReader.from_batches(numbered, batches())


def _mark_near_duplicates(connection: duckdb.DuckDBPyConnection, max_distance: int | None) -> int:
    """``chosen``: the crops that stay, with ``near_duplicate_of``; returns how many do not.

    Two hashes that differ in at most d bits agree in one of d + 1 bands of bits, so only crops that share a band are
    compared.
    """
    connection.execute("CREATE TABLE pairs (one BIGINT, other BIGINT)")
    if max_distance is not None:
        width = HASH_BITS // (max_distance + 1)
        connection.execute(
            f"""
            CREATE TABLE bands AS
            SELECT number, perceptual_hash, band, (perceptual_hash >> (band * {width})) & {(1 << width) - 1} AS bits
            FROM crops, range({max_distance + 1}) b(band)
            """
        )
        connection.execute(
            f"""
            INSERT INTO pairs SELECT DISTINCT a.number, b.number
            FROM bands a JOIN bands b ON a.band = b.band AND a.bits = b.bits AND a.number < b.number
            WHERE bit_count(xor(a.perceptual_hash, b.perceptual_hash)) <= {max_distance}
            """
        )
        connection.execute("DROP TABLE bands")
    connection.execute(
        """
        CREATE TABLE leaking AS
        SELECT DISTINCT
            if(list_position($sides, a.split) > list_position($sides, b.split), a.number, b.number) AS number
        FROM pairs p JOIN crops a ON p.one = a.number JOIN crops b ON p.other = b.number WHERE a.split <> b.split
        """,
        {"sides": list(_SIDES)},
    )
    connection.execute(
        """
        CREATE TABLE chosen AS
        SELECT c.*, first.video_id || '#' || first.frame_index || '#' || first.face AS near_duplicate_of
        FROM crops c
        LEFT JOIN (
            SELECT p.other AS number, min(p.one) AS first FROM pairs p
            JOIN crops a ON p.one = a.number JOIN crops b ON p.other = b.number
            WHERE a.split = b.split AND p.one NOT IN (SELECT number FROM leaking) GROUP BY p.other
        ) d ON c.number = d.number
        LEFT JOIN crops first ON first.number = d.first
        WHERE c.number NOT IN (SELECT number FROM leaking)
        """
    )
    return _count(connection, "leaking")


def _removals(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = connection.execute(
        """
        SELECT any_value(source), coalesce(any_value(reason), CASE
            WHEN max(face) IS NULL THEN 'no_face' WHEN bool_and(faces_in_frame > 1) THEN 'several_people'
            ELSE 'near_duplicate_of_other_split' END)
        FROM rows WHERE video_id NOT IN (SELECT video_id FROM chosen) GROUP BY video_id ORDER BY video_id
        """
    ).fetchall()
    return rows


def _rank(connection: duckdb.DuckDBPyConnection, labels: Sequence[str]) -> None:
    """``ranked``: each crop's place among those of its split and class, in an order that the crops' names decide."""
    ranks = ", ".join(
        f'if("{name}" IS NULL, NULL, row_number() OVER (PARTITION BY split, "{name}" ORDER BY place, number) - 1)'
        f' AS "rank_{name}"'
        for name in labels
    )
    connection.execute(
        f"CREATE TABLE ranked AS SELECT *, {ranks} FROM "
        "(SELECT *, md5(video_id || '#' || frame_index || '#' || face) AS place FROM chosen)"
    )


def _statistics(
    connection: duckdb.DuckDBPyConnection, split: str, labels: Sequence[str], pixels_of_crop: int
) -> SplitStatistics:
    def rows(sql: str) -> list[tuple[Any, ...]]:
        return connection.execute(sql, [split]).fetchall()

    of_split = "FROM ranked WHERE split = ?"
    ((num_crops, num_videos, num_creators, num_near),) = rows(
        "SELECT count(*), count(DISTINCT video_id), count(DISTINCT coalesce(creator_id, video_id)), "
        f"count(near_duplicate_of) {of_split}"
    )
    channels = rows(
        "SELECT sum(channel_sum[c])::BIGINT, sum(channel_sum_of_squares[c])::HUGEINT FROM ranked, range(1, 4) r(c) "
        "WHERE split = ? GROUP BY c ORDER BY c"
    )
    # Exact sums of integers, so that the result does not depend on any order.
    pixels = num_crops * pixels_of_crop
    means = [total / pixels / 255 for total, _ in channels]
    stds = [(squares * pixels - total**2) ** 0.5 / pixels / 255 for total, squares in channels]
    measures = ("confidence", "size_px", "sharpness", "brightness", "yaw_deg", "roll_deg")
    # A detector without landmarks gives no angles.
    columns = ", ".join(f"quantile_disc({m}, [0.05, 0.25, 0.5, 0.75, 0.95]) FILTER (NOT isnan({m}))" for m in measures)
    ((*quantiles,),) = rows(f"SELECT {columns} {of_split}")
    classes = {
        name: dict(
            rows(
                f'SELECT "{name}"::VARCHAR, count(*) {of_split} AND "{name}" IS NOT NULL '
                f'GROUP BY "{name}" ORDER BY "{name}"'
            )
        )
        for name in labels
    }
    return SplitStatistics.model_validate(
        {
            "num_crops": num_crops,
            "num_videos": num_videos,
            "num_creators": num_creators,
            "num_near_duplicates": num_near,
            "mean": means,
            "std": stds,
            "classes": classes,
            "quality": {name: values for name, values in zip(measures, quantiles, strict=True) if values is not None},
            "faces_per_frame": dict(rows(f"SELECT faces_in_frame, count(*) {of_split} GROUP BY ALL ORDER BY ALL")),
        }
    )


def _digest(connection: duckdb.DuckDBPyConnection, labels: Sequence[str]) -> str:
    columns = ", ".join(f'"{name}"::VARCHAR' for name in ("video_id", "frame_index", "face", "split", *labels))
    ((digest,),) = connection.execute(
        f"SELECT sha256(coalesce(string_agg(md5(to_json([{columns}])), '' ORDER BY number), '')) FROM ranked"
    ).fetchall()
    return str(digest)


def _write(
    connection: duckdb.DuckDBPyConnection,
    pictures: PictureFile,
    root: str,
    storage: Storage,
    split: str,
    labels: Sequence[str],
) -> Iterator[str]:
    """Write the files of a split, ordered by video, frame and face; yields their names."""
    people = () if "gender" in labels else ("gender",)
    names = [*VIDEO_COLUMNS, *people, "split", *CROP_COLUMNS, "near_duplicate_of", *labels]
    names += [f"rank_{name}" for name in labels]
    columns = ", ".join(f'"{name}"' for name in (*names, "picture"))
    ((num_crops,),) = connection.execute("SELECT count(*) FROM ranked WHERE split = ?", [split]).fetchall()
    for number, start in enumerate(range(0, num_crops, ROWS_PER_PART)):
        table = connection.sql(
            f"SELECT {columns} FROM ranked WHERE split = ? ORDER BY number LIMIT {ROWS_PER_PART} OFFSET {start}",
            params=[split],
        ).to_arrow_table()
        crops = pictures.take(table["picture"].to_pylist())
        table = table.drop_columns("picture").append_column("crop", crops)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=ROW_GROUP)
        name = f"{split}-{number:05d}.parquet"
        storage.put(join(root, name), buffer.getvalue())
        yield name


def _count(connection: duckdb.DuckDBPyConnection, what: str) -> int:
    ((number,),) = connection.execute(f"SELECT count(*) FROM {what}").fetchall()
    return int(number)
