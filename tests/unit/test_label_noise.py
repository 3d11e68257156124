"""Planted wrong labels are found among right ones, and verdicts take labels out of a source."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import UserError
from infra.storage import Storage
from models.faces.features import FaceFeatures
from ray_jobs.labels.noise import find_doubts
from ray_jobs.labels.removal import RemovalReport
from ray_jobs.labels.verdicts import read_verdicts, without_wrong_labels

SCORES = tuple(range(60, 100))
STYLES = ("a", "b", "c")


def _world(num_items: int = 300, crops: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features of crops that tell the item's class, the items of the crops, and the items' people: three each."""
    rng = np.random.default_rng(seed)
    of_item = rng.normal(size=(num_items, 6))
    items = np.repeat(np.arange(num_items), crops)
    features = of_item[items] + rng.normal(scale=0.2, size=(len(items), 6))
    return features.astype(np.float32), items, [f"person-{i // 3}" for i in range(num_items)]


def test_planted_errors_among_classes_are_the_most_doubtful() -> None:
    features, items, people = _world()
    truth = np.random.default_rng(2).integers(0, 3, 300)
    features[:, :3] += 5 * np.eye(3, dtype=np.float32)[truth[items]]
    planted = np.arange(0, 300, 20)
    targets = truth.copy()
    targets[planted] = (truth[planted] + 1) % 3
    doubts = find_doubts(features, items, targets, people, STYLES)
    assert doubts.agreement > 0.85 > doubts.trivial_agreement
    found = np.flatnonzero(doubts.is_doubted)
    # The threshold is a class's mean probability, which about half of its own items reach.
    assert set(found) <= set(planted)
    assert len(found) >= 7
    first = np.argsort(-doubts.doubt)[: len(planted)]
    assert len(set(planted) & set(first)) >= 14
    right = [i for i in planted if doubts.is_doubted[i]]
    assert np.mean(doubts.predicted[right] == truth[right]) > 0.9


def test_planted_errors_on_a_scale_are_outliers() -> None:
    features, items, people = _world()
    truth = np.clip(np.rint(20 + 6 * features[::2, 0]), 0, 39).astype(np.int64)
    planted = np.arange(0, 300, 20)
    targets = truth.copy()
    targets[planted] = (truth[planted] + 15) % 40
    doubts = find_doubts(features, items, targets, people, SCORES)
    assert set(planted) <= set(np.flatnonzero(doubts.is_doubted))
    assert doubts.is_doubted.sum() < 2 * len(planted)
    assert doubts.agreement > 0.85
    assert np.abs(doubts.predicted[planted] - truth[planted]).mean() < 4


def test_people_who_are_asked_about_were_not_learned_from() -> None:
    """One person's items share a feature that no one else has: only a leak could predict their label by it."""
    rng = np.random.default_rng(1)
    people = [f"person-{i // 10}" for i in range(200)]
    of_person = rng.normal(size=(20, 40))[np.arange(200) // 10]
    targets = rng.integers(0, 2, 20)[np.arange(200) // 10]
    doubts = find_doubts(of_person.astype(np.float32), np.arange(200), targets, people, (False, True))
    assert doubts.agreement < 0.8


def test_a_class_that_a_fold_lacks_is_no_error_and_one_person_is() -> None:
    features, items, people = _world(30, 1)
    targets = np.zeros(30, dtype=np.int64)
    targets[0] = 2
    assert find_doubts(features, items, targets, people, STYLES).doubt.shape == (30,)
    with pytest.raises(ValueError, match="two people"):
        find_doubts(features, items, targets, ["one"] * 30, STYLES)
    with pytest.raises(ValueError, match="two classes"):
        find_doubts(features, items, np.zeros(30, dtype=np.int64), people, STYLES)


def test_features_are_of_a_fixed_length_and_tell_pictures_apart() -> None:
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    crops[2] = crops[0]
    features = FaceFeatures()(crops)
    assert features.shape == (3, 2880)
    assert features.dtype == np.float32
    assert np.allclose(features[0], features[2])
    assert not np.allclose(features[0], features[1], atol=0.1)


def _rows() -> pa.Table:
    return pa.table(
        {
            "video_id": ["one", "two", "three"],
            "source": ["t.csv:2", "t.csv:3", "t.csv:4"],
            "hair": pa.array([True, False, None], pa.bool_()),
            "style": pa.array([0, None, 2], pa.int64()),
        }
    )


def _review(tmp_path: Path, *rows: str) -> str:
    path = tmp_path / "review.csv"
    path.write_text("label,video_id,source,given,suggested,doubt,verdict\n" + "".join(f"{row}\n" for row in rows))
    return str(path)


def test_wrong_labels_go_and_rows_without_any_with_them(tmp_path: Path) -> None:
    uri = _review(tmp_path, "hair,one,t.csv:2,true,false,1,wrong", "hair,two,,false,true,1,Wrong", "style,three,,,,1,")
    wrong = read_verdicts(uri, Storage(), ("hair", "style"))
    assert wrong == {"one": {"hair"}, "two": {"hair"}}
    report = RemovalReport("t.csv", 3)
    rows = without_wrong_labels(_rows(), wrong, ("hair", "style"), report)
    assert rows["video_id"].to_pylist() == ["one", "three"]
    assert rows["hair"].to_pylist() == [None, None]
    assert rows["style"].to_pylist() == [0, 2]
    assert rows.schema == _rows().schema
    assert [(item.row, item.column, item.reason) for item in report.objections] == [(3, "hair", "excluded_by_review")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("hair,one,,,,1,maybe", "row 2, verdict: 'maybe': give wrong, right, or nothing"),
        ("beard,one,,,,1,wrong", "row 2, label: 'beard': this source has hair, style"),
    ],
)
def test_a_verdict_that_says_nothing_known_is_refused(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_verdicts(_review(tmp_path, row), Storage(), ("hair", "style"))


def test_a_review_of_another_dataset_is_refused(tmp_path: Path) -> None:
    wrong = read_verdicts(_review(tmp_path, "hair,elsewhere,,,,1,wrong"), Storage(), ("hair", "style"))
    with pytest.raises(UserError, match=r"1 videos that t\.csv does not have: elsewhere"):
        without_wrong_labels(_rows(), wrong, ("hair", "style"), RemovalReport("t.csv", 3))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column label"):
        read_verdicts(str(tmp_path / "other.csv"), Storage(), ("hair", "style"))
