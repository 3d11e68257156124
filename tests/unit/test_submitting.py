"""A submission before it reaches a cluster: the upload, secrets, the command, versions, exit codes, the log."""

import asyncio
import json
import os
import shlex
import signal
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.errors import RunStopped, UserError
from infra.tracking import CODE_VERSION, code_version
from ray_jobs.job_environment import JOB_CONFIG, REFERENCES, STOP_WAIT, check_references, refuse_fleeting_tracking
from ray_jobs.submitting import submission
from ray_jobs.submitting.environment import is_secret, read_runtime_env, with_variables
from ray_jobs.submitting.job import Follower, connect_to_jobs, exit_code_of, version_difference
from ray_jobs.submitting.submission import Submission, check_verb, run_submission, submit_command
from ray_jobs.submitting.upload import check_no_secrets, check_upload, measure_upload

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "ray_jobs").mkdir()
    (tmp_path / "ray_jobs" / "__main__.py").write_text("pass\n")
    (tmp_path / ".rayignore").write_text("/runs/\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "crops.bin").write_bytes(bytes(5 << 20))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "pack").write_bytes(bytes(5 << 20))
    return tmp_path


def test_the_upload_is_what_ray_takes_along(project: Path) -> None:
    upload = measure_upload(project)
    assert set(upload.sizes) == {"ray_jobs/__main__.py", ".rayignore"}
    assert upload.num_bytes == sum(path.stat().st_size for path in map(project.joinpath, upload.sizes))


def test_the_upload_is_measured_as_ray_packs_it(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from zipfile import ZipFile

    from ray._private.runtime_env.packaging import create_package

    package = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(project), package, include_gitignore=True, excludes=[".git"])
    with ZipFile(package) as packed:
        sizes = {item.filename: item.file_size for item in packed.infolist() if not item.is_dir()}
    assert sizes == measure_upload(project).sizes


def test_a_large_upload_is_refused_by_name(project: Path) -> None:
    (project / "data").mkdir()
    (project / "data" / "videos.bin").write_bytes(bytes(3 << 20))
    upload = measure_upload(project)
    check_upload(upload, 4 << 20)
    with pytest.raises(UserError, match=r"3\.0 MiB in 3 files.*--max-upload-mib 2: data/ 3\.0 MiB.*\.rayignore"):
        check_upload(upload, 2 << 20)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ray_jobs/ there"):
        measure_upload(tmp_path)


def test_the_projects_own_upload_is_small_and_whole() -> None:
    upload = measure_upload(ROOT)
    assert upload.num_bytes < 5 << 20
    assert {"requirements.lock", "infra/runtime_env.yaml", "models/scorer.py"} <= set(upload.sizes)
    assert not any(path.startswith(("tests/", "runs/", ".git/")) for path in upload.sizes)


def test_settings_with_a_secret_do_not_travel(project: Path) -> None:
    settings = project / "facereel.yaml"
    settings.write_text("storage:\n  region: eu-west-1\n")
    check_no_secrets(project, measure_upload(project))
    settings.write_text("storage:\n  access_key_id: me\n  secret_access_key: hush\n")
    with pytest.raises(UserError, match=r"storage\.secret_access_key.*--secret") as refused:
        check_no_secrets(project, measure_upload(project))
    assert "hush" not in str(refused.value)
    settings.write_text("tracking:\n  uri: https://me:hush@mlflow.example.com\n")
    with pytest.raises(UserError, match=r"tracking\.uri") as refused:
        check_no_secrets(project, measure_upload(project))
    assert "hush" not in str(refused.value)
    (project / ".rayignore").write_text("/runs/\nfacereel.yaml\n")
    check_no_secrets(project, measure_upload(project))


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("FACEREEL_STORAGE__SECRET_ACCESS_KEY", True),
        ("FACEREEL_STORAGE__SESSION_TOKEN", True),
        ("FACEREEL_STORAGE__ACCESS_KEY_ID", False),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("MLFLOW_TRACKING_PASSWORD", True),
        ("MLFLOW_TRACKING_TOKEN", True),
        ("SERVICE_API_KEY", True),
        ("FACEREEL_TRACKING__URI", False),
        ("RAY_AUTH_TOKEN_PATH", False),
        ("RAY_JOB_STOP_WAIT_TIME_S", False),
    ],
)
def test_secrets_are_known_by_name(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_secrets_are_given_by_reference() -> None:
    environment, changed = with_variables(
        {"env_vars": {"A": "1"}}, ["B=2=3"], ["AWS_SECRET_ACCESS_KEY=TEAM_KEY", "MLFLOW_TRACKING_PASSWORD"]
    )
    assert changed
    assert environment["env_vars"] == {
        "A": "1",
        "B": "2=3",
        "AWS_SECRET_ACCESS_KEY": "${TEAM_KEY}",
        "MLFLOW_TRACKING_PASSWORD": "${MLFLOW_TRACKING_PASSWORD}",
        REFERENCES: "AWS_SECRET_ACCESS_KEY=TEAM_KEY,MLFLOW_TRACKING_PASSWORD=MLFLOW_TRACKING_PASSWORD",
        STOP_WAIT: "120",
    }


def test_whatever_is_given_by_reference_must_be_there() -> None:
    environment, _ = with_variables({}, [], ["FACEREEL_STORAGE__ACCESS_KEY_ID=TEAM_KEY"])
    assert environment["env_vars"][REFERENCES] == "FACEREEL_STORAGE__ACCESS_KEY_ID=TEAM_KEY"


def test_a_job_has_time_for_its_last_commit_whoever_wrote_its_environment() -> None:
    assert with_variables({}, [], []) == ({"env_vars": {STOP_WAIT: "120"}}, True)
    given = {"env_vars": {STOP_WAIT: "600"}}
    assert with_variables(given, [], []) == (given, False)


@pytest.mark.parametrize(
    ("plain", "references"),
    [
        (["AWS_SECRET_ACCESS_KEY=hush"], []),
        (["FACEREEL_STORAGE__SECRET_ACCESS_KEY=${A}hush"], []),
        (["FACEREEL_TRACKING__URI=https://me:hush@mlflow.example.com"], []),
        (["nothing"], []),
        ([], ["aws=hush-hush"]),
        ([], ["lower_case"]),
    ],
)
def test_what_is_no_reference_is_refused_without_its_value(plain: list[str], references: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        with_variables({}, plain, references)
    assert "hush" not in str(refused.value)


def test_the_runtime_environments_file(tmp_path: Path) -> None:
    assert read_runtime_env(ROOT / "infra" / "runtime_env.yaml")["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "120"
    for text, words in [
        ("env_vars: {AWS_SECRET_ACCESS_KEY: hush}", "a secret does not belong"),
        ("env_vars: {A: 1}", "Ray takes text only"),
        ("env_vars: {SERVICE_PASSWORD: 47114711}", "a secret does not belong"),
        ("env_vars: {1: 2}", "Ray takes text only"),
        ("[a]", "give a mapping"),
        ("a: [", "cannot be read"),
        ("working_dir: .", "--working-dir"),
    ]:
        path = tmp_path / "env.yaml"
        path.write_text(text)
        with pytest.raises(UserError, match=words) as refused:
            read_runtime_env(path)
        assert "hush" not in str(refused.value)
        assert "4711" not in str(refused.value)


def test_references_of_the_file_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "env.yaml"
    path.write_text("env_vars: {AWS_SECRET_ACCESS_KEY: '${TEAM_KEY}'}")
    environment, changed = with_variables(read_runtime_env(path), [], [])
    assert changed
    assert environment["env_vars"][REFERENCES] == "AWS_SECRET_ACCESS_KEY=TEAM_KEY"


def test_the_command_is_rays_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.submitting.submission.code_version", lambda folder: "unknown")
    plain = Submission(("score", "--tables", "s3://b/t"), address="http://head:8265", working_dir=ROOT)
    command = submit_command(plain, "score-1")
    assert shlex.join(command[:4]) == "ray job submit --no-wait"
    assert command[4:8] == ["--address", "http://head:8265", "--submission-id", "score-1"]
    assert command[command.index("--runtime-env") + 1] == str(ROOT / "infra" / "runtime_env.yaml")
    assert command[command.index("--") :] == ["--", "python", "-m", "ray_jobs", "score", "--tables", "s3://b/t"]
    with_secret = Submission(("status",), working_dir=ROOT, secrets=("AWS_SECRET_ACCESS_KEY=TEAM_KEY",))
    command = submit_command(with_secret, "status-1")
    assert "--runtime-env" not in command
    given = json.loads(command[command.index("--runtime-env-json") + 1])
    assert given["env_vars"]["AWS_SECRET_ACCESS_KEY"] == "${TEAM_KEY}"
    assert given["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "120"


def test_the_job_is_told_what_its_code_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its copy of the folder has no history."""
    monkeypatch.setattr("ray_jobs.submitting.submission.code_version", lambda folder: f"of {folder.name}")
    command = submit_command(Submission(("status",), working_dir=ROOT), "status-1")
    variables = json.loads(command[command.index("--runtime-env-json") + 1])["env_vars"]
    assert variables[CODE_VERSION] == f"of {ROOT.name}"
    monkeypatch.delenv(CODE_VERSION, raising=False)
    assert code_version(tmp_path) == "unknown"
    monkeypatch.setenv(CODE_VERSION, "v7")
    assert code_version(tmp_path) == "v7"


@pytest.mark.parametrize(
    "verb",
    [
        ("score", "--catalog", "s3://b/c", "--tables", "s3://b/t"),
        ("score", "--catalog", "s3://b/c", "--tables", "/shared/t"),
        ("status", "--tables", "file:///shared/t"),
        ("models", "list", "--task", "fs2k"),
        ("train", "--task", "fs2k", "--dataset", "s3://b/d", "--storage", "s3://b/train"),
    ],
)
def test_verbs_that_may_go(verb: tuple[str, ...]) -> None:
    check_verb(verb)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (("nothing",), "no such verb"),
        (("submit", "score"), "on this machine only"),
        (("demo",), "on this machine only"),
        (("score", "--catalog", "s3://b/c", "--tables", "runs/t"), "--tables runs/t: relative"),
        (("train", "--task", "fs2k", "--dataset", "s3://b/d"), "--storage runs/train: relative"),
    ],
)
def test_verbs_that_would_be_lost(verb: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_verb(verb)


@pytest.mark.parametrize("verb", [("score", "--nonsense"), ("models", "lst"), ("status",)])
def test_options_are_parsed_before_anything_is_sent(verb: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        check_verb(verb)


def test_versions_are_compared() -> None:
    assert version_difference("2.60.0", "2.60.0") is None
    assert version_difference("2.60.0", None) is None
    assert "2.60.1" in str(version_difference("2.60.0", "2.60.1"))
    with pytest.raises(UserError, match=r"the cluster runs Ray 2\.59\.0, .* have 2\.60\.0"):
        version_difference("2.60.0", "2.59.0")


class Refusing(BaseHTTPRequestHandler):
    """A dashboard that wants a token."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized: Missing authentication token")

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def test_a_cluster_that_does_not_take_the_token_or_does_not_answer() -> None:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        with pytest.raises(UserError, match=r"(?s)RAY_AUTH_TOKEN_PATH$"):
            connect_to_jobs(address)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UserError, match="give the address of the cluster's dashboard"):
        connect_to_jobs(address)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_exit_codes(status: str, code: int | None, expected: int) -> None:
    assert exit_code_of(status, code) == expected


class FakeJobs:
    """A job API whose connection breaks; its log begins anew each time."""

    def __init__(self, attempts: list[list[str | Exception]], status: str, code: int | None) -> None:
        self._attempts, self._status, self._code = attempts, status, code

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for item in self._attempts.pop(0) if len(self._attempts) > 1 else self._attempts[0]:
            if isinstance(item, Exception):
                raise item
            yield item

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        status = SimpleNamespace(value="RUNNING" if len(self._attempts) > 1 else self._status)
        return SimpleNamespace(status=status, driver_exit_code=self._code, message="no such environment")


def test_a_broken_connection_prints_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    lost = RuntimeError("WebSocket connection closed unexpectedly")
    jobs = FakeJobs([["one\n", lost], ["one\ntw", "o\n", lost], ["one\n", "two\nthree\n"]], "FAILED", 3)
    assert Follower(jobs, "job", reconnect_s=0).follow() == 3
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


class Patient(FakeJobs):
    """A job that takes long to stop; its user presses Ctrl-C, and again."""

    num_stops = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield "at work\n"
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.05)
        await asyncio.sleep(60)

    def stop_job(self, job_id: str) -> bool:
        self.num_stops += 1
        return True


def test_ctrl_c_stops_the_job_and_a_second_one_leaves_it(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = Patient([[]], "RUNNING", None)
    with pytest.raises(UserError, match="no longer followed; the job is still stopping: ray job status job"):
        Follower(jobs, "job", reconnect_s=0).follow()
    assert jobs.num_stops == 1
    assert "stopping job job; once more" in capsys.readouterr().err


class Stoppable(FakeJobs):
    """A job that runs until it is told to stop; the first tellings may be lost on their way."""

    def __init__(self, num_lost: int = 0, num_interrupts: int = 0) -> None:
        super().__init__([[]], "RUNNING", None)
        self._num_lost, self._num_interrupts = num_lost, num_interrupts
        self._num_stops = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        if self._num_interrupts:
            self._num_interrupts -= 1
            before = self._num_stops
            os.kill(os.getpid(), signal.SIGINT)
            while self._num_stops == before or len(asyncio.all_tasks()) > 1:  # until the job was told, or not
                await asyncio.sleep(0.01)
        yield "at work\n"

    def stop_job(self, job_id: str) -> bool:
        self._num_stops += 1
        if self._num_lost:
            self._num_lost -= 1
            raise RuntimeError("Failed to connect")
        self._status = "STOPPED"
        return True


def test_ctrl_c_ends_with_the_jobs_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert Follower(Stoppable(num_interrupts=1), "job", reconnect_s=0).follow() == 130
    assert "job job: stopped" in capsys.readouterr().err


def test_a_stop_that_did_not_arrive_is_said_and_can_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert Follower(Stoppable(num_lost=1, num_interrupts=2), "job", reconnect_s=0.05).follow() == 130
    assert "was not told to stop (Failed to connect); Ctrl-C tries again" in capsys.readouterr().err


@pytest.mark.parametrize("wait", [True, False])
def test_ctrl_c_while_the_job_is_handed_in_stops_it(
    wait: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def hand_in(command: list[str], **_: object) -> SimpleNamespace:
        os.kill(os.getpid(), signal.SIGINT)
        return SimpleNamespace(returncode=0, stdout="")

    jobs = Stoppable()
    monkeypatch.setenv(CODE_VERSION, "v7")
    monkeypatch.setattr(submission, "connect_to_jobs", lambda address: jobs)
    monkeypatch.setattr(submission.subprocess, "run", hand_in)
    with pytest.raises(RunStopped) as stopped:
        run_submission(Submission(("status", "--tables", "s3://b/t"), working_dir=ROOT, wait=wait))
    assert stopped.value.exit_code == 130
    assert "stopping the job as soon as it is handed in" in capfd.readouterr().err


def test_settings_named_by_the_verb_are_looked_at_too(project: Path) -> None:
    (project / "infra").mkdir()
    (project / "infra" / "runtime_env.yaml").write_text("env_vars: {}\n")
    (project / "team.yaml").write_text("storage:\n  access_key_id: me\n  secret_access_key: hush\n")
    verb = ("status", "--tables", "s3://b/t", "--config", "./team.yaml")
    with pytest.raises(UserError, match=r"team\.yaml holds storage\.secret_access_key"):
        run_submission(Submission(verb, working_dir=project, dry_run=True))
    (project / ".rayignore").write_text("/runs/\nteam.yaml\n")
    run_submission(Submission(verb, working_dir=project, dry_run=True))


def test_a_job_that_never_ran_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert Follower(FakeJobs([[]], "FAILED", None), "job", reconnect_s=0).follow() == 1
    assert "did not run: no such environment" in capsys.readouterr().err


def test_a_missing_reference_ends_the_job_at_once() -> None:
    wanted = {REFERENCES: "AWS_SECRET_ACCESS_KEY=TEAM_KEY,MLFLOW_TRACKING_TOKEN=TOKEN"}
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_TOKEN \(the node's TOKEN\)") as refused:
        check_references(wanted | {"AWS_SECRET_ACCESS_KEY": "hush", "MLFLOW_TRACKING_TOKEN": ""})
    assert "AWS_SECRET" not in str(refused.value)
    check_references(wanted | {"AWS_SECRET_ACCESS_KEY": "hush", "MLFLOW_TRACKING_TOKEN": "hush"})
    check_references({})


def test_a_registry_that_goes_away_with_the_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_fleeting_tracking("sqlite:///mlflow.db")  # on this machine it stays
    monkeypatch.setenv(JOB_CONFIG, "{}")
    refuse_fleeting_tracking("sqlite:////shared/mlflow.db")
    refuse_fleeting_tracking("http://mlflow:5000")
    with pytest.raises(UserError, match="FACEREEL_TRACKING__URI"):
        refuse_fleeting_tracking("sqlite:///mlflow.db")
