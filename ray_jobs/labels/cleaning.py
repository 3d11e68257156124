"""From a messy label table to one row a video: what each row says, the rules that remove rows, and repeated videos."""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from infra.errors import UserError
from infra.storage import Storage, is_s3, join
from models.tasks.base import Head, get_task, task_names
from ray_jobs.catalog import ADULT_AGE
from ray_jobs.labels import cells
from ray_jobs.labels.removal import Objection, RemovalReport
from ray_jobs.labels.rules import LabelRules
from ray_jobs.labels.spreadsheet import Sheet, read_sheet

# What a column is called in the wild, beside its own name: compared without case, spaces and what stands in brackets.
HEADERS = {
    "video_id": ("video", "id", "视频id", "视频编号", "编号"),
    "uri": ("url", "link", "视频", "链接", "视频链接", "作品链接", "地址", "网址"),
    "creator_id": ("creator", "author", "singer", "作者", "作者id", "创作者", "歌手", "用户id"),
    "score": ("rating", "分数", "评分", "打分", "得分", "颜值", "颜值分", "颜值分数"),
    "gender": ("sex", "性别"),
    "age": ("年龄", "年纪"),
    "remarks": ("remark", "note", "notes", "comment", "备注", "说明"),
    "labelled_at": ("date", "labeled_at", "日期", "时间", "标注时间", "打分时间"),
}
_BRACKETS = re.compile(r"\(.*?\)|\[.*?\]")
CHILD = "child"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CleanLabels:
    """One row a video, and the account of the rows that did not get there."""

    rows: pa.Table
    tasks: tuple[str, ...]
    report: RemovalReport
    classes_before: dict[str, dict[str, int]]  # label column, class as text, rows with it before any was removed


@dataclass(slots=True)
class _Row:
    """What one row of the table says; ``labels`` by column, None where missing."""

    number: int
    uri: str
    video_id: str
    creator_id: str | None = None
    gender: str | None = None
    age: float | None = None
    labelled_at: str = ""
    remarks: tuple[str, ...] = ()
    labels: dict[str, Any] = field(default_factory=dict)
    is_readable: bool = True  # no cell of it that cannot be read
    refusal: Objection | None = None  # what a rule has against the video, not only against this row


class NotInStorage(ValueError):
    """An address of the table names nothing that can be decoded; its text is the reason."""


def in_storage(address: str) -> str:
    """The address itself, where it is one of storage.

    Raises:
        NotInStorage: It is one of the web.
    """
    if is_web(address):
        raise NotInStorage("web_address")
    return address


def is_web(address: str) -> bool:
    """Whether the address has to be fetched from the web first."""
    return address.lower().startswith(("http://", "https://"))


def clean_labels(
    uri: str,
    storage: Storage,
    tasks: Sequence[str],
    rules: LabelRules,
    locate: Callable[[str], str] = in_storage,
    *,
    needs_labels: bool = True,
) -> CleanLabels:
    """Read and clean a label table.

    Args:
        uri: CSV, TSV, Excel, Parquet or JSON lines. Relative uris in it are relative to its folder.
        storage: Where the table lies.
        tasks: The tasks whose labels are kept; empty: every task whose label columns all stand in the table.
        rules: What removes a row.
        locate: From an absolute address of the table to where the video lies; raises `NotInStorage` with a reason.
        needs_labels: Whether a table without any task's labels is refused.

    Returns:
        Rows in the table's order: ``video_id``, ``uri``, ``etag`` (null), ``creator_id``, ``gender``, ``age``,
        ``remarks`` (list of names and unknown texts), ``source`` (``file:row``) and the label columns of the tasks.

    Raises:
        UserError: The table cannot be read, lacks a column, has one twice, or no row of it is usable.
        StorageError: The table is not there, or cannot be fetched.
    """
    sheet = read_sheet(uri, storage)
    positions = column_positions(sheet, rules)
    tasks = _usable_tasks(uri, positions, tasks) if needs_labels else _complete_tasks(positions)
    heads = list({head.name: head for name in tasks for head in get_task(name).heads}.values())
    headers = {name: sheet.columns[position] for name, position in positions.items()}
    report = RemovalReport(uri, len(sheet.rows), headers)
    reader = _RowReader(positions, heads, rules, report, _base(uri, storage), locate)
    rows = [row for number, values in sheet.rows if (row := reader.read(number, values)) is not None]
    before = {head.name: _histogram(head, rows) for head in heads}
    kept = _one_per_video(rows, rules, heads, report)
    if not kept:
        raise UserError(f"{uri}: no row can be used: {_spoken(report)}")
    return CleanLabels(_table(uri, kept, heads), tuple(tasks), report, before)


def column_positions(sheet: Sheet, rules: LabelRules) -> dict[str, int]:
    """Column name -> position in the sheet.

    Raises:
        UserError: There is no column of addresses, two columns mean the same, or the rules name one that is missing.
    """
    spelled = {_spelling(header): name for name, headers in HEADERS.items() for header in (name, *headers)}
    spelled |= {_spelling(head.name): head.name for name in task_names() for head in get_task(name).heads}
    for name, header in rules.columns.items():
        if header not in sheet.columns:
            raise UserError(
                f"{sheet.file}: no column {header!r} for {name}; it has {', '.join(filter(None, sheet.columns))}"
            )
        spelled = {text: known for text, known in spelled.items() if known != name} | {_spelling(header): name}
    positions: dict[str, int] = {}
    for position, header in enumerate(sheet.columns):
        found = spelled.get(_spelling(header))
        if found is None:
            continue
        if found in positions:
            raise UserError(
                f"{sheet.file}: the columns {sheet.columns[positions[found]]!r} and {header!r} both mean {found}; "
                f"rename one, or say which under labels.columns in the policy file"
            )
        positions[found] = position
    if "uri" not in positions:
        raise UserError(
            f"{sheet.file}: the label table has no column uri (or url, 链接, …); "
            f"it has {', '.join(filter(None, sheet.columns))}. Name it under labels.columns in the policy file"
        )
    return positions


def _spelling(header: str) -> str:
    text = unicodedata.normalize("NFKC", header).lower()
    return re.sub(r"[\s_]+", "", _BRACKETS.sub("", text))


def _usable_tasks(uri: str, positions: dict[str, int], tasks: Sequence[str]) -> Sequence[str]:
    complete = _complete_tasks(positions)
    if not tasks and complete:
        return complete
    if not tasks or not set(tasks) <= set(complete):
        wanted = [name for name in tasks if name not in complete] or task_names()
        raise UserError(
            f"{uri}: no task's label columns are all there; "
            + "; ".join(f"{name} needs {', '.join(get_task(name).label_columns)}" for name in wanted)
        )
    return tasks


def _complete_tasks(positions: dict[str, int]) -> list[str]:
    return [name for name in task_names() if set(get_task(name).label_columns) <= set(positions)]


def _base(uri: str, storage: Storage) -> str:
    base = uri.rsplit("/", 1)[0] if "/" in uri else "."
    return base if is_s3(base) else storage.absolute(base)


class _RowReader:
    """Reads rows one by one, and objects to those that cannot be read or that a rule removes."""

    def __init__(
        self,
        positions: dict[str, int],
        heads: Sequence[Head],
        rules: LabelRules,
        report: RemovalReport,
        base: str,
        locate: Callable[[str], str],
    ) -> None:
        self._positions, self._rules, self._report, self._base = positions, rules, report, base
        self._locate = locate
        self._classes = {head.name: {str(value).lower(): value for value in head.classes} for head in heads}

    def read(self, number: int, values: Sequence[Any]) -> _Row | None:
        """The row; None where it names no video."""
        text = {name: cells.normalized(values[position]) for name, position in self._positions.items()}
        plain = {name: cells.plain(values[position]) for name, position in self._positions.items()}
        address = plain["uri"]
        if not address:
            self._report.add(number, "uri", "no_uri")
            return None
        uri = address if urlsplit(address).scheme or address.startswith("/") else join(self._base, address)
        row = _Row(
            number,
            uri,
            video_id=plain.get("video_id") or video_id_of(uri),
            creator_id=plain.get("creator_id") or cells.creator_of_url(uri),
            labelled_at=text.get("labelled_at", ""),
        )
        self._read_people(row, text)
        self._read_labels(row, text)
        self._apply_remarks(row, text.get("remarks", ""))
        self._find_video(row, address)
        return row

    def _find_video(self, row: _Row, address: str) -> None:
        try:
            row.uri = self._locate(row.uri)
        except NotInStorage as error:
            if row.refusal is None:  # what a rule refuses was left unfetched for that
                self._object(row, "uri", str(error), address)

    def _read_people(self, row: _Row, text: dict[str, str]) -> None:
        row.gender = self._parsed(row, "gender", text, cells.read_gender)
        row.age = self._parsed(row, "age", text, cells.read_age)
        if self._rules.removes_minors and row.age is not None and row.age < ADULT_AGE:
            self._refuse(row, "age", "minor", text["age"])

    def _read_labels(self, row: _Row, text: dict[str, str]) -> None:
        for name, classes in self._classes.items():
            value = text[name]
            if name == "score" and value:
                found = self._parsed(row, name, text, cells.read_score)
                if found is None:
                    continue
                score, gender = found
                value = str(score)
                if gender is not None and row.gender not in (None, gender):
                    self._object(row, name, "two_genders", text[name])
                row.gender = row.gender or gender
            if name == "gender":
                value = row.gender or ""
            if value and value.lower() not in classes:
                self._object(row, name, f"bad_{name}", text[name])
                continue
            row.labels[name] = classes[value.lower()] if value else None
        if row.is_readable and self._classes and all(value is None for value in row.labels.values()):
            self._object(row, next(iter(self._classes)), "no_label", "")

    def _apply_remarks(self, row: _Row, text: str) -> None:
        known, unknown = cells.read_remarks(text)
        row.remarks = (*known, *unknown)
        if CHILD in known and self._rules.removes_minors:
            self._refuse(row, "remarks", "minor", text)
        for name in known:
            if name in self._rules.remove_remarks and not (name == CHILD and self._rules.removes_minors):
                self._refuse(row, "remarks", name, text)
        if unknown and self._rules.unknown_remarks == "remove":
            self._refuse(row, "remarks", "unknown_remark", text)

    def _parsed(self, row: _Row, name: str, text: dict[str, str], parse: Callable[[str], T]) -> T | None:
        try:
            return parse(text.get(name, ""))
        except cells.BadCell:
            self._object(row, name, f"bad_{name}", text[name])
            return None

    def _object(self, row: _Row, name: str, reason: str, value: str) -> None:
        """A cell of this row cannot be used."""
        row.is_readable = False
        self._report.add(row.number, name, reason, value)

    def _refuse(self, row: _Row, name: str, reason: str, value: str) -> None:
        """A rule refuses the video."""
        row.refusal = self._report.add(row.number, name, reason, value)


def video_id_of(uri: str) -> str:
    """The id of a video that the table gives none: the same address always has the same one."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def _histogram(head: Head, rows: Sequence[_Row]) -> dict[str, int]:
    counts = Counter(row.labels.get(head.name) for row in rows)
    return {str(value).lower(): counts[value] for value in head.classes if counts[value]}


def _one_per_video(rows: Sequence[_Row], rules: LabelRules, heads: Sequence[Head], report: RemovalReport) -> list[_Row]:
    """One row a video, in the table's order, out of those to which nothing objects.

    An objection to what a video shows (a child, a remark) is one to all its rows; a cell that cannot be read costs
    its row alone.
    """
    groups: dict[str, list[_Row]] = defaultdict(list)
    uris: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        groups[row.uri].append(row)
        uris[row.video_id].add(row.uri)
    ambiguous = {video_id for video_id, found in uris.items() if len(found) > 1}
    kept = []
    for group in groups.values():
        for row in group:
            if row.video_id in ambiguous:
                report.add(row.number, "video_id", "id_of_several_videos", row.video_id)
        refusal = next((row.refusal for row in group if row.refusal is not None), None)
        if refusal is not None:
            for row in group:
                if row.refusal is None:
                    report.add(row.number, refusal.column, refusal.reason, f"row {refusal.row}: {refusal.value}")
            continue
        usable = [row for row in group if row.is_readable and row.video_id not in ambiguous]
        if usable and (merged := _merged(usable, rules, heads, report)) is not None:
            kept.append(merged)
    return sorted(kept, key=lambda row: row.number)


def _merged(group: list[_Row], rules: LabelRules, heads: Sequence[Head], report: RemovalReport) -> _Row | None:
    """One row of several about one video; None where they contradict each other and the rules drop it."""
    first, *others = group
    if not others:
        return first
    differing = [head for head in heads if len({row.labels[head.name] for row in group}) > 1]
    remarks = tuple(dict.fromkeys(remark for row in group for remark in row.remarks))
    if not differing:
        for row in others:
            report.add(row.number, "uri", "duplicate", f"as row {first.number}")
        first.remarks = remarks
        return first
    names = ", ".join(report.headers.get(head.name, head.name) for head in differing)
    said = "; ".join(f"row {row.number}: {', '.join(str(row.labels[h.name]) for h in differing)}" for row in group)
    if rules.conflicts == "latest":
        latest = max(group, key=lambda row: (row.labelled_at, row.number))
        for row in group:
            if row is not latest:
                report.add(row.number, names, "superseded", f"by row {latest.number}")
        latest.remarks = remarks
        return latest
    numeric = all(type(value) is int for head in differing for value in head.classes)
    if rules.conflicts == "drop" or not numeric:
        for row in group:
            report.add(row.number, names, "conflict", said)
        return None
    for head in differing:
        known = [row.labels[head.name] for row in group if row.labels[head.name] is not None]
        first.labels[head.name] = min(head.classes, key=lambda value: abs(int(value) - sum(known) / len(known)))
    for row in others:
        report.add(row.number, names, "averaged", f"into row {first.number}: {said}")
    first.remarks = remarks
    return first


def _table(uri: str, rows: Sequence[_Row], heads: Sequence[Head]) -> pa.Table:
    columns: dict[str, Any] = {
        "video_id": [row.video_id for row in rows],
        "uri": [row.uri for row in rows],
        "etag": pa.nulls(len(rows), pa.string()),
        "creator_id": pa.array([row.creator_id for row in rows], pa.string()),
        "gender": pa.array([row.gender for row in rows], pa.string()),
        "age": pa.array([row.age for row in rows], pa.float32()),
        "remarks": pa.array([row.remarks for row in rows], pa.list_(pa.string())),
        "source": [f"{uri.rsplit('/', 1)[-1]}:{row.number}" for row in rows],
    }
    types = {bool: pa.bool_(), int: pa.int64(), str: pa.string()}
    for head in heads:
        columns[head.name] = pa.array([row.labels[head.name] for row in rows], types[type(head.classes[0])])
    return pa.table(columns)


def _spoken(report: RemovalReport) -> str:
    return (
        "; ".join(f"{cost.reason} {cost.num_rows} (for example {cost.examples[0]})" for cost in report.costs())
        or "it has a header and no rows"
    )
