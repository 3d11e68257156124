"""A review's verdicts: labels that people found wrong, taken out of a label table or of FS2K's folder."""

from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa

from infra.errors import UserError
from infra.storage import Storage
from ray_jobs.labels.removal import RemovalReport
from ray_jobs.labels.spreadsheet import read_sheet

COLUMNS = ("label", "video_id", "source", "given", "suggested", "doubt", "verdict")
WRONG, RIGHT = "wrong", "right"
REASON = "excluded_by_review"


def read_verdicts(uri: str, storage: Storage, labels: Sequence[str]) -> dict[str, set[str]]:
    """Video id -> labels of it that are wrong.

    Raises:
        UserError: The file is no review, or a row of it names an unknown label or verdict.
    """
    sheet = read_sheet(uri, storage)
    absent = [name for name in ("label", "video_id", "verdict") if name not in sheet.columns]
    if absent:
        raise UserError(f"{uri}: no column {absent[0]}: give the review.csv of the verb review")
    found: dict[str, set[str]] = defaultdict(set)
    for number, cells in sheet.rows:
        row = dict(zip(sheet.columns, cells, strict=True))
        verdict = str(row["verdict"] or "").strip().lower()
        if verdict not in (WRONG, RIGHT, ""):
            raise UserError(f"{uri}, row {number}, verdict: {row['verdict']!r}: give {WRONG}, {RIGHT}, or nothing")
        if row["label"] not in labels:
            raise UserError(f"{uri}, row {number}, label: {row['label']!r}: this source has {', '.join(labels)}")
        if verdict == WRONG:
            found[str(row["video_id"])].add(str(row["label"]))
    return dict(found)


def without_wrong_labels(
    rows: pa.Table, wrong: dict[str, set[str]], labels: Sequence[str], report: RemovalReport
) -> pa.Table:
    """The rows with the wrong labels missing; rows without any label left are gone, and stand in the report.

    Raises:
        UserError: A verdict is about a video that is not among the rows: the review is of another dataset.
    """
    ids = rows["video_id"].to_pylist()
    if unknown := sorted(set(wrong) - set(ids)):
        raise UserError(f"the review speaks of {len(unknown)} videos that {report.file} does not have: {unknown[0]}, …")
    columns = {name: rows[name].to_pylist() for name in labels}
    kept = []
    for number, video_id in enumerate(ids):
        for name in wrong.get(video_id, ()):
            columns[name][number] = None
        is_left = any(values[number] is not None for values in columns.values())
        if is_left or video_id not in wrong:
            kept.append(number)
        else:
            row = rows["source"][number].as_py().rpartition(":")[2]
            report.add(int(row), ", ".join(sorted(wrong[video_id])), REASON, video_id)
    for name, values in columns.items():
        position = rows.column_names.index(name)
        rows = rows.set_column(position, name, pa.array(values, rows.schema.field(name).type))
    return rows.take(kept)
