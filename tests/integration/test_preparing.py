"""From a spreadsheet with every trouble to a crops dataset, on a local Ray cluster over drawn videos."""

import csv
from collections.abc import Iterator
from pathlib import Path

import openpyxl
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import ray_jobs.preparing
from infra.errors import UserError
from infra.storage import Storage
from ray_jobs.crops.dataset import DatasetManifest, DatasetRules, read_manifest
from ray_jobs.preparing import PrepareConfig, run_prepare
from ray_jobs.reviewing import ReviewConfig, run_review
from ray_jobs.sizing import Resources
from ray_jobs.splits import SplitBy
from tests.integration.conftest import FACE_POLICY, FRAME_POLICY, World

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def spreadsheet(world: World) -> str:
    """The drawn videos as a workbook in Chinese, with rows that say nothing, too much, or the wrong thing."""
    truth = pyarrow.csv.read_csv(world.drawn.truth).to_pylist()
    workbook = openpyxl.Workbook()
    workbook.active.append(("视频链接", "分数", "性别", "年龄", "备注"))
    for row in truth:
        gender = {"male": "男", "female": "女"}[row["gender"]]
        workbook.active.append((row["uri"], f"{row['score']} {gender}", None, "25岁", "-"))
    first, second = truth[0]["uri"], truth[1]["uri"]
    workbook.active.append((first, truth[0]["score"], None, None, "吸烟"))  # a duplicate
    workbook.active.append((second, 60 if truth[1]["score"] != 60 else 61, None, None, None))  # a conflict
    workbook.active.append(("broken/none.mp4", 77, None, None, None))  # not there
    workbook.active.append((truth[2]["uri"], truth[2]["score"], None, None, "儿童"))
    workbook.save(world.folder / "labels.xlsx")
    return str(world.folder / "labels.xlsx")


def prepare(
    world: World, labels: str, out: Path, *, split_by: SplitBy = "image", rows_per_block: int = 32
) -> DatasetManifest:
    config = PrepareConfig(
        out=str(out),
        labels=labels,
        split_by=split_by,
        frame_policy=FRAME_POLICY,
        face_policy=FACE_POLICY,
        rules=DatasetRules(near_duplicate_bits=None),
        resources=Resources(rows_per_block=rows_per_block),
    )
    return run_prepare(config, world.settings)


@pytest.fixture(scope="module")
def prepared(world: World, spreadsheet: str) -> tuple[Path, DatasetManifest]:
    out = world.folder / "from-spreadsheet"
    return out, prepare(world, spreadsheet, out)


def test_every_row_is_accounted_for(prepared: tuple[Path, DatasetManifest], spreadsheet: str) -> None:
    out, manifest = prepared
    assert read_manifest(str(out), Storage()) == manifest
    assert manifest.tasks == ("attractiveness",)
    assert {cost.reason: cost.num_rows for cost in manifest.removed_rows} == {"duplicate": 1, "conflict": 2, "minor": 2}
    assert manifest.removed_videos == {"not_found": 1}
    assert manifest.num_rows == manifest.num_videos + manifest.num_rows_removed
    with (out / "removed.csv").open() as file:
        removed = list(csv.DictReader(file))
    assert {row["file"] for row in removed} == {"labels.xlsx"}
    crops = [row for part in out.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    kept = {row["source"] for row in crops}
    rows = {int(source.rpartition(":")[2]) for source in kept} | {int(row["row"]) for row in removed}
    assert rows == set(range(2, manifest.num_rows + 2))
    # What the removed duplicate says of the video stays on the row that is kept.
    rows_of_first = [row for row in crops if row["source"].endswith(":2")]
    assert all(row["remarks"] == ["smoking"] and row["age"] == 25 for row in rows_of_first)


def test_other_blocks_give_the_same_bytes(
    world: World, spreadsheet: str, prepared: tuple[Path, DatasetManifest], tmp_path: Path
) -> None:
    out, manifest = prepared
    assert prepare(world, spreadsheet, tmp_path, rows_per_block=1) == manifest
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()}
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes(), name


class Crash(Exception):
    """Raised in the middle of a run."""


def test_a_run_that_broke_off_goes_on(
    world: World,
    spreadsheet: str,
    prepared: tuple[Path, DatasetManifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray_jobs.crops.staging.FLUSH_ROWS", 1)
    arriving = ray_jobs.preparing.arriving

    def breaking(ds: object) -> Iterator[object]:
        for number, block in enumerate(arriving(ds)):
            if number == 1:
                raise Crash
            yield block

    with monkeypatch.context() as patch:
        patch.setattr(ray_jobs.preparing, "arriving", breaking)
        with pytest.raises(Crash):
            prepare(world, spreadsheet, tmp_path)
    with pytest.raises(UserError, match="no crops dataset there"):
        read_manifest(str(tmp_path), Storage())
    with pytest.raises(UserError, match="made of other labels or policies"):
        prepare(world, spreadsheet, tmp_path, split_by="video")
    asked: list[int] = []

    def counting(ds: object) -> Iterator[object]:
        for block in arriving(ds):
            asked.append(len(set(block["video_id"].to_pylist())))
            yield block

    monkeypatch.setattr(ray_jobs.preparing, "arriving", counting)
    assert prepare(world, spreadsheet, tmp_path) == prepared[1]
    assert 0 < sum(asked) < prepared[1].num_videos


def test_a_review_lists_doubtful_labels_and_its_verdicts_leave_them_out(
    world: World,
    spreadsheet: str,
    prepared: tuple[Path, DatasetManifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, manifest = prepared
    monkeypatch.setattr("ray_jobs.labels.noise.OUTLIER_Z", 0.0)  # every label but the median one is doubted
    (reviewed,) = run_review(ReviewConfig(dataset=str(out), out=str(tmp_path)), world.settings)
    assert (reviewed.label, reviewed.problem) == ("score", "")
    videos = {row["video_id"] for part in out.glob("*.parquet") for row in pq.read_table(part).to_pylist()}
    assert reviewed.num_items == len(videos)
    assert len(reviewed.doubtful) >= reviewed.num_items - 1 > 0
    page = (tmp_path / "review.html").read_text()
    assert page.count("<li data-row=") == len(reviewed.doubtful)
    assert all(1 <= len(item.pictures) <= 3 for item in reviewed.doubtful)
    header, *rows = (tmp_path / "review.csv").read_text().splitlines()
    assert len(rows) == len(reviewed.doubtful)
    video = min(videos)
    (tmp_path / "review.csv").write_text(f"{header}\nscore,{video},,70,90,1,wrong\n")
    config = PrepareConfig(
        out=str(tmp_path / "again"),
        labels=spreadsheet,
        exclude=str(tmp_path / "review.csv"),
        split_by="image",
        frame_policy=FRAME_POLICY,
        face_policy=FACE_POLICY,
        rules=DatasetRules(near_duplicate_bits=None),
    )
    again = run_prepare(config, world.settings)
    assert again.num_videos == manifest.num_videos - 1
    assert again.num_rows == again.num_videos + again.num_rows_removed
    assert {cost.reason: cost.num_rows for cost in again.removed_rows}["excluded_by_review"] == 1
    left = {
        row["video_id"] for part in (tmp_path / "again").glob("*.parquet") for row in pq.read_table(part).to_pylist()
    }
    assert left == videos - {video}
    with pytest.raises(UserError, match="--label hair: the dataset has score"):
        run_review(ReviewConfig(dataset=str(out), out=str(tmp_path), labels=("hair",)), world.settings)
