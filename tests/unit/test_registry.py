"""The registry: what was registered comes back unchanged, and only that."""

import gc
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from infra.settings import TrackingSettings
from infra.tracking import experiment_id, shown_uri, tracking_client
from models import registry
from tests.unit.scorers import small_scorer


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    return TrackingSettings(uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


@pytest.fixture(scope="module")
def client(tracking: TrackingSettings) -> MlflowClient:
    return tracking_client(tracking)


@pytest.fixture
def run_id(client: MlflowClient, tracking: TrackingSettings) -> str:
    return str(client.create_run(experiment_id(client, tracking)).info.run_id)


def test_a_registered_scorer_comes_back_by_version_alias_and_directory(
    client: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    saved = small_scorer(tmp_path / "scorer", "fs2k")
    version = registry.register(client, tmp_path / "scorer", run_id=run_id)
    assert version.tags["digest"] == saved.digest
    assert registry.set_alias(client, "fs2k", version.version, "champion") is None
    name = registry.model_name("fs2k")
    by_version = f"models:/{name}/{version.version}"
    for reference in ("champion", f"models:/{name}@champion", by_version, str(version.version)):
        assert registry.find_digest(client, reference, task="fs2k") == saved.digest
        found = registry.resolve(client, reference, task="fs2k")
        assert found.scorer.digest == saved.digest
        assert found.version == by_version
    assert registry.resolve(client, str(tmp_path / "scorer"), task="fs2k").scorer.digest == saved.digest
    assert registry.tasks_with(client, "champion") == ["fs2k"]
    second = registry.register(client, tmp_path / "scorer", run_id=run_id)
    assert registry.set_alias(client, "fs2k", str(second.version), "champion") == str(version.version)
    assert [(item.version, item.aliases) for item in registry.versions(client, "fs2k")] == [
        (second.version, ["champion"]),
        (version.version, []),
    ]


def test_a_downloaded_scorer_leaves_no_files_behind(client: MlflowClient, run_id: str, tmp_path: Path) -> None:
    small_scorer(tmp_path / "scorer", "fs2k")
    version = registry.register(client, tmp_path / "scorer", run_id=run_id)
    found = registry.resolve(client, str(version.version), task="fs2k")
    directory = found.directory
    assert (directory / "weights.safetensors").is_file()
    del found
    gc.collect()
    assert not directory.exists()


def test_changed_artifacts_are_refused(client: MlflowClient, run_id: str, tmp_path: Path) -> None:
    small_scorer(tmp_path / "scorer", "attractiveness")
    version = registry.register(client, tmp_path / "scorer", run_id=run_id)
    (stored,) = Path(version.source.removeprefix("file://")).glob("weights.safetensors")
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    with pytest.raises(UserError, match="weights"):
        registry.set_alias(client, "attractiveness", version.version, "champion")
    assert registry.tasks_with(client, "champion") != ["attractiveness"]


def test_another_scorer_under_the_digest_is_refused(client: MlflowClient, run_id: str, tmp_path: Path) -> None:
    small_scorer(tmp_path / "scorer", "attractiveness")
    version = registry.register(client, tmp_path / "scorer", run_id=run_id)
    client.set_model_version_tag(version.name, version.version, "digest", "0" * 64)
    with pytest.raises(UserError, match="another scorer"):
        registry.resolve(client, f"models:/{version.name}/{version.version}", task="attractiveness")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("models:/facereel-attractiveness@nobody", "no scorer models:/facereel-attractiveness@nobody"),
        ("models:/facereel-attractiveness/999", "no scorer"),
        ("runs/none/scorer", "is no scorer"),
        ("challenger", "no scorer models:/facereel-attractiveness@challenger"),
    ],
)
def test_what_does_not_exist_is_named(client: MlflowClient, reference: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        registry.resolve(client, reference, task="attractiveness")


def test_a_scorer_of_another_task_is_refused(client: MlflowClient, tmp_path: Path) -> None:
    small_scorer(tmp_path / "scorer", "fs2k")
    with pytest.raises(UserError, match="answers the task 'fs2k'"):
        registry.resolve(client, str(tmp_path / "scorer"), task="attractiveness")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ada:secret@mlflow.example/a", "https://mlflow.example/a"),
        ("postgresql+psycopg2://ada:se%40cret@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("https://ada:p@ss@mlflow.example", "https://mlflow.example"),
        ("postgresql://db/mlflow?password=secret", "postgresql://db/mlflow"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_messages_and_records_hold_no_password(uri: str, shown: str) -> None:
    assert shown_uri(uri) == shown
