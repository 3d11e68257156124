"""The policy file: sections with defaults; mistakes are named."""

from pathlib import Path

import pytest

from infra.errors import UserError
from ray_jobs.policy_file import Policies, read_policies


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "policy.yaml").write_text(text)
    return tmp_path / "policy.yaml"


def test_without_a_file_the_defaults_hold() -> None:
    assert read_policies(None) == Policies()


def test_what_stands_in_the_file_wins_over_the_defaults(tmp_path: Path) -> None:
    found = read_policies(write(tmp_path, "frame: {every: 10, mode: keyframe}\nface: {crop_size: 128}\n"))
    assert (found.frame.every, found.frame.limit, found.frame.mode) == (10, 10, "keyframe")
    assert found.face.crop_size == 128
    assert found.limits == Policies().limits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frame: {evry: 10}", r"policy\.yaml: frame\.evry"),
        ("frame: {every: 0}", r"frame\.every: .*greater than or equal to 1"),
        ("faces: {}", "the sections frame, face, limits"),
        ("- 1", "the sections"),
        ("frame: {", "cannot be read"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_policies(write(tmp_path, text))


def test_a_section_that_has_no_meaning_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the sections limits here"):
        read_policies(write(tmp_path, "frame: {every: 5}"), sections=("limits",))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_policies(tmp_path / "none.yaml")
