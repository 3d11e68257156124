"""Messy label tables: every trouble of the published one, as spreadsheet and as text, and the account of what goes."""

from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from infra.errors import UserError
from infra.storage import Storage
from ray_jobs.labels.cells import creator_of_url, read_remarks, read_score
from ray_jobs.labels.cleaning import CleanLabels, clean_labels, video_id_of
from ray_jobs.labels.rules import KEEP_MINORS, LabelRules

PAGE = "https://videos.example/play?s={creator}_1600000000_{number}"
HEADER = ("链接", "分数（60-99）", "性别", "年龄", "备注")
ROWS = (
    (PAGE.format(creator="c1", number=1), "78 男", "", 25, "-"),
    (PAGE.format(creator="c1", number=2), "８５", "女", "３０岁", ""),
    (PAGE.format(creator="c2", number=1), 90.0, "女", None, "吸烟、面部装扮"),
    (PAGE.format(creator="c3", number=1), "70", "男", "40", "人脸不全、多人出镜"),
    (PAGE.format(creator="c4", number=1), "66", "女", "", "儿童"),
    (PAGE.format(creator="c5", number=1), "67", "女", 12, ""),
    (PAGE.format(creator="c6", number=1), "-", "女", "", ""),
    (PAGE.format(creator="c7", number=1), "很好", "女", "", ""),
    ("", "80", "女", "", "已删除"),
    (PAGE.format(creator="c8", number=1), "120", "男", "", ""),
    (PAGE.format(creator="c9", number=1), "75", "男", "", ""),
    (PAGE.format(creator="c9", number=1), "75", "男", "", "面部尺寸小"),
    (PAGE.format(creator="d1", number=1), "70", "男", "", ""),
    (PAGE.format(creator="d1", number=1), "76", "男", "", ""),
    (PAGE.format(creator="d2", number=1), "88", "男", "", "戴墨镜"),
)
# Row numbers as a spreadsheet shows them: the header is row 1.
WANTED = {5: {"face_cut_off", "several_people"}, 6: {"minor"}, 7: {"minor"}, 8: {"no_label"}, 9: {"bad_score"}}
WANTED |= {10: {"no_uri"}, 11: {"bad_score"}, 13: {"duplicate"}, 14: {"conflict"}, 15: {"conflict"}}


def write(folder: Path, kind: str) -> str:
    path = folder / f"labels.{kind.partition('-')[0]}"
    if kind == "xlsx":
        workbook = openpyxl.Workbook()
        for row in (HEADER, *ROWS):
            workbook.active.append(row)
        workbook.save(path)
    else:
        separator = "\t" if kind.startswith("tsv") else ","
        text = "\n".join(separator.join("" if cell is None else str(cell) for cell in row) for row in (HEADER, *ROWS))
        path.write_bytes(text.encode("gbk" if kind.endswith("gbk") else "utf-8-sig"))
    return str(path)


def clean(uri: str, tasks: tuple[str, ...] = (), **rules: object) -> CleanLabels:
    return clean_labels(uri, Storage(), tasks, LabelRules.model_validate(rules), locate=str)


def table(folder: Path, text: str) -> str:
    path = folder / "labels.csv"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("kind", ["xlsx", "csv-utf8", "csv-gbk", "tsv-utf8", "tsv-gbk"])
def test_the_published_shape_with_every_trouble(tmp_path: Path, kind: str) -> None:
    found = clean(write(tmp_path, kind))
    assert found.tasks == ("attractiveness",)
    assert [
        (row["score"], row["gender"], row["age"], row["creator_id"], tuple(row["remarks"]), row["source"].split(":")[1])
        for row in found.rows.to_pylist()
    ] == [
        (78, "male", 25, "c1", (), "2"),
        (85, "female", 30, "c1", (), "3"),
        (90, "female", None, "c2", ("smoking", "face_paint"), "4"),
        (75, "male", None, "c9", ("small_face",), "12"),
        (88, "male", None, "d2", ("戴墨镜",), "16"),
    ]
    reasons: dict[int, set[str]] = {}
    for item in found.report.objections:
        reasons.setdefault(item.row, set()).add(item.reason)
    assert reasons == WANTED
    assert found.rows.num_rows + len(found.report.removed_rows) == found.report.num_rows == len(ROWS)


def test_objections_name_the_column_and_the_value_of_the_table(tmp_path: Path) -> None:
    report = clean(write(tmp_path, "xlsx")).report
    (bad,) = [item for item in report.objections if item.row == 9]
    assert (bad.column, bad.value) == ("分数（60-99）", "很好")
    costs = {cost.reason: cost for cost in report.costs()}
    assert (costs["minor"].num_rows, costs["minor"].num_only) == (2, 2)
    # A row with two reasons would not come back by lifting one of them.
    assert (costs["face_cut_off"].num_rows, costs["face_cut_off"].num_only) == (1, 0)
    assert costs["bad_score"].examples == ("row 9, 分数（60-99）: '很好'", "row 11, 分数（60-99）: '120'")


@pytest.mark.parametrize(
    ("policy", "scores", "reasons"),
    [
        ("drop", [], {2: "conflict", 3: "conflict"}),
        ("mean", [73], {3: "averaged"}),
        ("latest", [76], {2: "superseded"}),
    ],
)
def test_the_same_video_with_different_scores(tmp_path: Path, policy: str, scores: list[int], reasons: object) -> None:
    uri = table(tmp_path, "url,score\n/a.mp4,70\n/a.mp4,76\n/b.mp4,80\n")
    found = clean(uri, conflicts=policy)
    assert found.rows["score"].to_pylist() == [*scores, 80]
    assert {item.row: item.reason for item in found.report.objections} == reasons


def test_latest_is_by_the_date_where_the_table_has_one(tmp_path: Path) -> None:
    uri = table(tmp_path, "url,score,日期\n/a.mp4,70,2026-03-01\n/a.mp4,76,2026-01-31\n")
    assert clean(uri, conflicts="latest").rows["score"].to_pylist() == [70]


def test_what_a_video_shows_counts_for_all_its_rows(tmp_path: Path) -> None:
    uri = table(tmp_path, "url,score,remark\n/a.mp4,70,\n/a.mp4,70,child\n/b.mp4,80,\n")
    found = clean(uri)
    assert found.rows["uri"].to_pylist() == ["/b.mp4"]
    assert {item.row: item.reason for item in found.report.objections} == {2: "minor", 3: "minor"}


def test_minors_stay_only_by_the_whole_sentence(tmp_path: Path) -> None:
    uri = table(tmp_path, "url,score,age,remark\n/a.mp4,70,12,\n/b.mp4,80,,儿童\n/c.mp4,90,30,\n")
    assert clean(uri).rows["score"].to_pylist() == [90]
    # Taking `child` from the remarks that remove changes nothing.
    assert clean(uri, remove_remarks=[]).rows["score"].to_pylist() == [90]
    assert clean(uri, minors=KEEP_MINORS).rows["score"].to_pylist() == [70, 80, 90]
    for value in ("keep", "false", False, "yes"):
        with pytest.raises(ValidationError, match="minors"):
            LabelRules.model_validate({"minors": value})


def test_rules_choose_which_remarks_remove(tmp_path: Path) -> None:
    uri = table(tmp_path, "url,score,remark\n/a.mp4,70,smoking\n/b.mp4,80,face cut off; hat\n/c.mp4,90,\n")
    assert clean(uri).rows["score"].to_pylist() == [70, 90]
    assert clean(uri, remove_remarks=["smoking"]).rows["score"].to_pylist() == [80, 90]
    assert clean(uri, remove_remarks=[], unknown_remarks="remove").rows["score"].to_pylist() == [70, 90]
    with pytest.raises(ValidationError, match="no such remark: 'hat'"):
        LabelRules.model_validate({"remove_remarks": ["hat"]})


def test_ids_addresses_and_creators(tmp_path: Path) -> None:
    found = clean(table(tmp_path, "video_id,uri,creator_id,score\n1,a.mp4,c1,78\n,/ｂ.mp4,,99\n3,s3://x/c.mp4,c2,60\n"))
    assert [(row["video_id"], row["uri"], row["creator_id"]) for row in found.rows.to_pylist()] == [
        ("1", f"{tmp_path}/a.mp4", "c1"),
        (video_id_of("/ｂ.mp4"), "/ｂ.mp4", None),
        ("3", "s3://x/c.mp4", "c2"),
    ]


def test_one_id_for_two_videos_removes_both(tmp_path: Path) -> None:
    found = clean(table(tmp_path, "video_id,uri,score\n1,/a.mp4,78\n1,/b.mp4,78\n2,/c.mp4,60\n"))
    assert found.rows["video_id"].to_pylist() == ["2"]
    assert {item.row: item.reason for item in found.report.objections} == dict.fromkeys((2, 3), "id_of_several_videos")


def test_labels_of_both_tasks_in_parquet(tmp_path: Path) -> None:
    row = {"uri": "/a.mp4", "score": 78, "hair": True, "gender": "Female", "earring": None, "smile": False}
    row |= {"frontal_face": True, "hair_color": "black", "style": 2.0}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "labels.parquet")
    found = clean(str(tmp_path / "labels.parquet"))
    assert found.tasks == ("attractiveness", "fs2k")
    (kept,) = found.rows.to_pylist()
    assert {name: kept[name] for name in ("score", "hair", "gender", "earring", "style")} == {
        "score": 78,
        "hair": True,
        "gender": "female",
        "earring": None,
        "style": 2,
    }
    assert clean(str(tmp_path / "labels.parquet"), ("fs2k",)).tasks == ("fs2k",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,score\n1,78\n", r"no column uri.*name, score.*labels\.columns"),
        ("uri\na\n", "attractiveness needs score"),
        ("uri,url,score\na,b,78\n", "'uri' and 'url' both mean uri"),
        ("uri,score\na,120\nb,-\n", "no row can be used: bad_score 1 .for example row 2, score: '120'.; no_label 1"),
        ("uri,score\n", "a header and no rows"),
        ("", "is empty"),
    ],
)
def test_a_table_without_a_usable_row_is_one_clear_message(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        clean(table(tmp_path, text))


def test_a_header_of_one_s_own_is_named_in_the_rules(tmp_path: Path) -> None:
    uri = table(tmp_path, "where,how,url\n/a.mp4,70,ignored\n")
    assert clean(uri, columns={"uri": "where", "score": "how"}).rows["uri"].to_pylist() == ["/a.mp4"]
    with pytest.raises(UserError, match="no column 'here' for uri; it has where, how, url"):
        clean(uri, columns={"uri": "here"})


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("labels.xlsx", b"PK", "no Excel workbook"),
        ("labels.csv", b"url,score\n\xff\xff\xff,1\n", "neither UTF-8 nor GBK"),
        ("labels.parquet", b"PAR1", "cannot be read as parquet"),
        ("labels.doc", b"", "ends in one of .csv"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}.*{words}"):
        clean(str(tmp_path / name))


def test_cells() -> None:
    assert read_score("78男") == (78, "male")
    assert read_score("78.0 分 女") == (78, "female")
    assert read_remarks("多人出镜、吸烟,吸烟 / 其他") == (("several_people", "smoking"), ("其他",))
    assert creator_of_url("https://x.example/play?s=ab_cd_1_2&t=1") is None
    assert creator_of_url("https://x.example/play?s=abc_1600000000_2&t=1") == "abc"


def test_addresses_of_the_web_are_no_videos_in_storage(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("url,score,remarks\nhttps://a.example/1,70,\nvideos/2.mp4,71,\nHTTPS://a.example/3,72,儿童\n")
    found = clean_labels(str(path), Storage(), (), LabelRules())
    assert found.rows["uri"].to_pylist() == [str(tmp_path / "videos/2.mp4")]
    assert [(item.row, item.reason) for item in found.report.objections] == [(2, "web_address"), (4, "minor")]
