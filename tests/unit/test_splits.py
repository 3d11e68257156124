"""The split: stable, five to one, and no creator on both sides."""

import pytest

from ray_jobs.splits import is_validation, split_of


def test_the_split_is_stable() -> None:
    found = [number for number in range(60) if is_validation(f"creator-{number}")]
    assert found == [25, 26, 27, 32, 37, 39, 44, 46, 55]


def test_it_is_about_five_to_one() -> None:
    share = sum(is_validation(f"video-{number}") for number in range(6_000)) / 6_000
    assert abs(share - 1 / 6) < 0.02


def sides(by: str, key: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for number in range(600):
        row = {"creator_id": f"creator-{number % 40}", "video_id": f"video-{number % 120}"}
        side = split_of(by, **row, frame_index=50 * (number // 120))
        found.setdefault(row[key], set()).add(side)
    return found


@pytest.mark.parametrize(("by", "key"), [("creator", "creator_id"), ("creator", "video_id"), ("video", "video_id")])
def test_what_the_split_is_by_stands_on_one_side(by: str, key: str) -> None:
    found = sides(by, key)
    assert all(len(side) == 1 for side in found.values())
    assert set().union(*found.values()) == {"train", "val"}


def test_by_video_a_creator_and_by_image_a_video_stand_on_both() -> None:
    assert any(len(side) == 2 for side in sides("video", "creator_id").values())
    assert any(len(side) == 2 for side in sides("image", "video_id").values())


def test_a_video_without_a_creator_counts_as_its_own() -> None:
    names = [f"video-{number}" for number in range(100)]
    assert [split_of("creator", creator_id=None, video_id=name, frame_index=0) for name in names] == [
        split_of("video", creator_id="x", video_id=name, frame_index=0) for name in names
    ]
