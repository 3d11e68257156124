"""The quick look at MLflow before a job begins: servers that are away, silent, broken or strict."""

import os
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra import tracking
from infra.errors import UserError
from infra.settings import Settings, TrackingSettings, load_settings
from ray_jobs import __main__ as command_line
from ray_jobs.diagnosing.findings import guarded
from ray_jobs.diagnosing.stores import check_mlflow
from ray_jobs.evaluating import EvaluateConfig, run_evaluate
from ray_jobs.models import app as models_app
from ray_jobs.preflight import answering_client
from ray_jobs.promoting.deciding import PromoteConfig, run_promote
from ray_jobs.promoting.gates import Gates
from ray_jobs.score_config import resolve_scorers
from tests.ray_head import free_ports


@pytest.fixture(autouse=True)
def own_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ones in the address are put into the environment, and taken out again at the end."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")


def settings(port: int) -> TrackingSettings:
    return TrackingSettings(uri=f"http://someone:hu%40sh@127.0.0.1:{port}")


@contextmanager
def server(status: int, body: bytes = b"{}", **headers: str) -> Iterator[tuple[int, list[str]]]:
    """A server that gives everybody the same answer; its port, and the credentials that it was given."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["Authorization"])
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

        do_GET = do_POST  # noqa: N815

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield running.server_port, asked
    finally:
        running.shutdown()
        running.server_close()


def refusal(port: int) -> str:
    with pytest.raises(UserError) as refused:
        answering_client(settings(port))
    text = str(refused.value)
    assert text.startswith(f"tracking.uri http://127.0.0.1:{port}: ")
    assert "sh@" not in text
    assert "the verb doctor" in text
    return text


def test_nobody_listens() -> None:
    assert "Connection refused" in refusal(free_ports(1)[0])


EVALUATION = EvaluateConfig(task="fs2k", dataset="/none", out="/none")


@pytest.mark.parametrize(
    "begin",
    [
        lambda settings: resolve_scorers({}, settings),
        lambda settings: resolve_scorers({"fs2k": "champion"}, settings),
        lambda settings: run_evaluate(EVALUATION, settings),
        lambda settings: run_promote(PromoteConfig(task="fs2k", version="1", gates=Gates()), settings),
    ],
)
def test_jobs_begin_with_the_look(begin: Callable[[Settings], object]) -> None:
    uri = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(UserError, match=f"tracking.uri {uri}: no MLflow answers there"):
        begin(load_settings(os.devnull, tracking={"uri": uri}))


@pytest.mark.parametrize("arguments", [("list",), ("show", "1", "--task", "fs2k"), ("log", "--task", "fs2k")])
def test_looks_into_the_registry_begin_with_it_too(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEREEL_TRACKING__URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert "no MLflow answers there" in str(CliRunner().invoke(models_app, arguments).exception)


def test_a_server_accepts_and_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking._IMPATIENT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "timed out" in refusal(silent.getsockname()[1])


def test_the_quick_look_takes_less_than_half_a_minute() -> None:
    tries = 1 + int(tracking._IMPATIENT["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
    assert tries * int(tracking._IMPATIENT["MLFLOW_HTTP_REQUEST_TIMEOUT"]) < 30


def test_a_broken_server_may_not_ask_for_an_hours_patience(caplog: pytest.LogCaptureFixture) -> None:
    with server(503, b"busy", Retry_After="3600") as (port, asked):
        text = refusal(port)
    assert "(too many 503 error responses)" in text
    assert "FACEREEL_TRACKING__URI" in text
    assert len(asked) == 2
    assert caplog.text == ""  # one line, not one a try


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials(status: int) -> None:
    with server(status, b"You are not authenticated.") as (port, _):
        text = refusal(port)
    assert "MLflow refuses" in text
    assert "MLFLOW_TRACKING_PASSWORD" in text


@pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http://no-such-host.invalid"])
def test_an_address_that_is_none(uri: str) -> None:
    with pytest.raises(UserError, match=f"tracking.uri {uri}: no MLflow answers there .+FACEREEL_TRACKING__URI"):
        answering_client(TrackingSettings(uri=uri))


def test_another_server_at_the_address() -> None:
    with server(200, b"<html>welcome") as (port, _):
        assert "no MLflow answers there" in refusal(port)


def test_one_look_a_process_and_patience_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with server(200) as (port, asked):
        answering_client(settings(port))
        client = answering_client(settings(port))
        assert len(asked) == 1
        assert client is tracking.tracking_client(settings(port))
    assert asked == ["Basic " + b64encode(b"someone:hu@sh").decode()]
    assert client.tracking_uri == f"http://127.0.0.1:{port}"  # errors of MLflow quote it
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_scorers_in_directories_need_no_server(tmp_path: Path) -> None:
    away = settings(free_ports(1)[0])
    answering_client(away, [str(tmp_path)])
    with pytest.raises(UserError):
        answering_client(away, [str(tmp_path), "champion"])


def test_a_password_in_the_address_does_not_reach_the_doctors_report() -> None:
    found = guarded("mlflow", "start it", lambda: check_mlflow(settings(free_ports(1)[0])))
    assert found[0].level == "fail"
    assert "sh@" not in found[0].message


def test_a_server_that_goes_away_in_the_middle_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = tracking.tracking_client(settings(free_ports(1)[0]))

    def verb(**_: object) -> None:
        with tracking.impatient():
            client.search_experiments(max_results=1)

    monkeypatch.setattr(command_line, "app", verb)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: MLflow does not answer any more (API request to ")
    assert "repeat the command once it does" in told
    assert "hu@sh" not in told


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(command_line, "app", verb)
    with pytest.raises(ZeroDivisionError):
        command_line.main()
