"""A user's mistake at the command line: one clear line, exit code 2, nothing written."""

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

from ray_jobs.__main__ import main


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["ray_jobs", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0), capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a catalog and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACEREEL_TRACKING__URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "catalog.csv").write_text("video_id,uri\na,a.mp4\n")
    (tmp_path / "empty.csv").write_text("video_id,uri\n")
    (tmp_path / "columns.csv").write_text("id,uri\na,a.mp4\n")
    (tmp_path / "twice.csv").write_text("video_id,uri\na,a.mp4\na,b.mp4\n")
    (tmp_path / "broken.parquet").write_text("no parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("catalog", "words"),
    [
        ("empty.csv", "the catalog is empty"),
        ("columns.csv", "no column video_id"),
        ("twice.csv", "an id stands for one video"),
        ("broken.parquet", "cannot be read as parquet"),
        ("none.csv", "none.csv"),
    ],
)
def test_a_bad_catalog(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], catalog: str, words: str
) -> None:
    from tests.unit.scorers import small_scorer

    small_scorer(folder / "scorer", "fs2k")
    code, error = run(
        monkeypatch, capsys, "score", "--catalog", catalog, "--tables", "tables", "--scorer", "fs2k=scorer"
    )
    assert code == 2
    assert words in error.strip().splitlines()[-1]
    assert error.count("error:") == 1
    assert not (folder / "tables").exists()


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        ("fs2k=models:/facereel-fs2k/7", "no scorer models:/facereel-fs2k/7"),
        ("fs2k=nowhere/scorer", "is no scorer"),
        ("fs2k", "give TASK=REF"),
        ("beauty=champion", "unknown task 'beauty'"),
    ],
)
def test_a_scorer_that_does_not_exist(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scorer: str, words: str
) -> None:
    code, error = run(monkeypatch, capsys, "plan", "--catalog", "catalog.csv", "--tables", "tables", "--scorer", scorer)
    assert code == 2
    assert words in error
    assert not (folder / "tables").exists()


def test_no_champion(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = run(monkeypatch, capsys, "plan", "--catalog", "catalog.csv", "--tables", "tables")
    assert code == 2
    assert "no task has a champion" in error


def test_unknown_settings_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "facereel.yaml").write_text("storage:\n  endpoint: here\n")
    code, error = run(monkeypatch, capsys, "plan", "--catalog", "catalog.csv", "--tables", "tables")
    assert code == 2
    assert "facereel.yaml" in error
    assert "storage.endpoint" in error


def test_a_second_writer_is_refused_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from infra.leases import Lease
    from infra.storage import Storage

    with Lease(Storage(), str(folder / "tables"), "run 7"):
        code, error = run(monkeypatch, capsys, "score", "--catalog", "catalog.csv", "--tables", "tables")
    assert code == 2
    assert "run 7" in error
    assert f"pid {os.getpid()}" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("status", "--tables", "nowhere"), "no tables and no runs there"),
        (("results", "--tables", "nowhere", "--task", "fs2k"), "no table scores_fs2k there"),
        (("results", "--tables", "nowhere", "--task", "beauty"), "no task 'beauty'"),
        (("tables", "optimize", "--tables", "nowhere"), "no tables there"),
        (("tables", "shrink", "--tables", "nowhere"), "the one action is optimize"),
        (("plan", "--catalog", "catalog.csv", "--tables", "t", "--content", "name"), "give etag or sha256"),
    ],
)
def test_mistakes_with_tables(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    code, error = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert words in error
    assert not (folder / "nowhere").exists()


def test_the_plan_as_json(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.unit.scorers import small_scorer

    small_scorer(folder / "scorer", "fs2k")
    arguments = ["plan", "--catalog", "catalog.csv", "--tables", "tables", "--scorer", "fs2k=scorer", "--json"]
    monkeypatch.setattr(sys, "argv", ["ray_jobs", *arguments])
    with contextlib.suppress(SystemExit):
        main()
    plan = json.loads(capsys.readouterr().out)
    assert (plan["num_videos"], plan["num_due"], plan["tasks"]["fs2k"]["new"]) == (1, 1, 1)
    assert plan["examples"] == {"fs2k": {"new": ["a"]}}
    assert not (folder / "tables").exists()
