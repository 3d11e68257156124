"""A user's mistake at the command line: one clear line, exit code 2, nothing written."""

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
