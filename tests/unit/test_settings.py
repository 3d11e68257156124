"""The settings tree: which source wins, what is refused and how, and how settings travel."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.settings import Settings, load_settings

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean_environment(tmp_path, monkeypatch):
    for name in os.environ:
        if name.upper().startswith("FACEREEL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(**sections) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(**sections)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_need_nothing():
    settings = load_settings()
    assert settings.tracking.uri == "sqlite:///mlflow.db"
    assert settings.storage.endpoint_url is None
    assert settings.cluster.address is None


def test_arguments_beat_environment_beats_file_beats_defaults(monkeypatch):
    Path("facereel.yaml").write_text(
        "storage: {region: from-file, max_attempts: 7, read_timeout_s: 3}\ntracking:\n  # all left out\n"
    )
    monkeypatch.setenv("FACEREEL_STORAGE__REGION", "from-environment")
    monkeypatch.setenv("facereel_storage__max_attempts", "8")
    storage = load_settings(storage={"region": "from-arguments"}).storage
    assert (storage.region, storage.max_attempts, storage.read_timeout_s) == ("from-arguments", 8, 3)
    assert storage.connect_timeout_s == 5
    assert load_settings().storage.region == "from-environment"


def test_file_is_named_by_argument_or_environment(monkeypatch):
    Path("facereel.yaml").write_text("cluster: {num_cpus: 1}")
    Path("two.yaml").write_text("cluster: {num_cpus: 2}")
    Path("three.yaml").write_text("cluster: {num_cpus: 3}")
    assert load_settings().cluster.num_cpus == 1
    monkeypatch.setenv("FACEREEL_CONFIG", "two.yaml")
    assert load_settings().cluster.num_cpus == 2
    assert load_settings("three.yaml").cluster.num_cpus == 3


def test_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("FACEREEL_STORAGE__ENDPOINT_URL", "")
    assert load_settings().storage.endpoint_url is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "storage: {endpont_url: http://a}",
            "facereel.yaml: storage.endpont_url: unknown key; known here: endpoint_url,",
        ),
        ("storge: {}", "facereel.yaml: storge: unknown key; known here: storage, tracking, cluster"),
        ("storage: 3", "facereel.yaml: storage: Input should be"),
        ("cluster: {num_cpus: none}", "facereel.yaml: cluster.num_cpus: Input should be a valid integer"),
        ("cluster: {1: 2}", "facereel.yaml: cluster.1: unknown key"),
        ("Cluster: {num_cpus: none}", "facereel.yaml: cluster.num_cpus: Input"),
        ("config: other.yaml", "facereel.yaml: 'config' cannot stand"),
        ("- storage", "facereel.yaml: a settings file maps sections"),
        ("storage: {", "facereel.yaml: the settings file is no YAML"),
    ],
)
def test_mistakes_in_the_file_are_refused_by_file_and_key(text, expected):
    Path("facereel.yaml").write_text(text)
    assert refusal().startswith(expected)


def test_file_that_cannot_be_read_is_refused(tmp_path):
    assert "none.yaml: the settings file cannot be read" in refusal(config="none.yaml")
    assert "cannot be read" in refusal(config=tmp_path)
    Path("latin.yaml").write_bytes(b"\xff\xfe\x00")
    assert "latin.yaml: the settings file cannot be read" in refusal(config="latin.yaml")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("FACEREEL_STORAGE__REGOIN", "x", "environment variable FACEREEL_STORAGE__REGOIN: storage.regoin: unknown key"),
        ("FACEREEL_STORGE__REGION", "x", "environment variable FACEREEL_STORGE__REGION: unknown section"),
        ("FACEREEL_STORAGE__READ_TIMEOUT_S", "soon", "FACEREEL_STORAGE__READ_TIMEOUT_S: storage.read_timeout_s: "),
        ("FACEREEL_STORAGE__ENDPOINT_URL", "host:9000", "got 'host:9000'"),
        ("FACEREEL_STORAGE__ACCESS_KEY_ID", "key", "access_key_id and secret_access_key belong together"),
        ("FACEREEL_STORAGE", "{", 'error parsing value for field "storage"'),
    ],
)
def test_mistakes_in_the_environment_are_refused_by_variable(monkeypatch, name, value, expected):
    monkeypatch.setenv(name, value)
    assert expected in refusal()


def test_mistakes_in_arguments_are_refused():
    assert refusal(cluster={"num_cpus": 0}).startswith("arguments: cluster.num_cpus: Input should be greater")
    assert "session_token needs" in refusal(storage={"session_token": "token"})


def test_refusals_do_not_show_secrets(monkeypatch):
    monkeypatch.setenv("FACEREEL_STORAGE__SECRET_ACCESS_KEYS", "hunter2")
    assert "hunter2" not in refusal(storage={"secret_access_key": {"hunter2": 1}})
    monkeypatch.delenv("FACEREEL_STORAGE__SECRET_ACCESS_KEYS")
    assert "hunter2" not in refusal(storage={"secret_access_key": "hunter2"})


def test_settings_travel_by_pickle_and_show_no_secret(monkeypatch):
    settings = load_settings(storage={"access_key_id": "key", "secret_access_key": "hunter2"})
    monkeypatch.setenv("FACEREEL_STORAGE__REGION", "of-the-worker")
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.storage.secret_access_key.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_settings_travel_to_a_process_by_its_environment():
    settings = load_settings(
        storage={"access_key_id": "key", "secret_access_key": "hunter2", "read_timeout_s": 2.5},
        tracking={"experiment": "männer"},
    )
    # What the other process would find by itself must not mix in.
    Path("facereel.yaml").write_text("storge: {region: of-the-worker}")
    environment = os.environ | {"FACEREEL_CLUSTER__ADDRESS": "of-the-worker"} | settings.to_env()
    code = "import sys, pickle, infra.settings as s; sys.stdout.buffer.write(pickle.dumps(s.load_settings()))"
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=True
    ).stdout
    copy = pickle.loads(output)
    assert copy.model_dump(exclude={"config"}) == settings.model_dump(exclude={"config"})
    assert json.dumps(settings.to_env())


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().storage.region = "x"
    assert hash(load_settings()) == hash(Settings())
