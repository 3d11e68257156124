"""Who may ask the service, and how often."""

import os
import socket
from pathlib import Path

import httpx
import pytest

from infra.errors import UserError
from infra.settings import load_settings
from serve.client import Client, Retries, ServiceError
from serve.local import start
from serve.security import Gate, add_key, is_loopback, read_keys
from tests.serving import running_service


def test_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = add_key(path, "team-a")
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert list(read_keys(path)) == ["team-a"]
    with pytest.raises(UserError, match="already"):
        add_key(path, "team-a")
    with pytest.raises(UserError, match="no name"):
        add_key(path, "a b")
    path.write_text("team-a secret\n")
    with pytest.raises(UserError, match="line 1"):
        read_keys(path)
    with pytest.raises(UserError, match="no rate"):
        Gate(None, "often")


def test_only_keys_are_let_in(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first = add_key(path, "first")
    with running_service(tmp_path, api_keys=str(path), rate="5/minute") as service:
        for headers in (
            {},
            {"X-API-Key": "frk_wrong"},
            {"Authorization": "Basic abc"},
            {"Authorization": f"Bearer {first}x"},
        ):
            refused = httpx.get(f"{service.url}/v1/service", headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        for batch in ("/v1/batches", "/v1/batches/batch-0000000000000000"):
            headers = {"X-API-Key": add_key(tmp_path / "keys", f"b{len(batch)}")}
            unknown = httpx.get(service.url + batch, headers=headers)
            assert (unknown.status_code, unknown.json()["code"]) == (404, "no_batches")
        for path_ in ("/", "/healthz", "/readyz", "/web/page.js", "/v1/openapi.json"):
            assert httpx.get(service.url + path_).status_code == 200, path_
        with Client(service.url, first, retries=Retries(most=1)) as client:
            for _ in range(5):
                client.service()
            with pytest.raises(ServiceError, match="rate_limited") as error:
                client.service()
        assert error.value.status == 429
        second = add_key(path, "second")  # without a restart
        with Client(service.url, second, retries=Retries(most=1)) as client:
            client.service()
        path.write_text("broken")  # the keys of before stay
        with Client(service.url, second, retries=Retries(most=1)) as client:
            client.service()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        (None, False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str | None, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_place_where_nothing_can_listen_is_said_before_anything_starts() -> None:
    settings = load_settings(os.devnull)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"nothing can listen on 127\.0\.0\.1:{port} .*another --port"):
            start(settings, "127.0.0.1", port)
    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0 is beyond loopback"):
        start(settings, "0.0.0.0", port)


def test_the_nodes_of_a_cluster_listen_and_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        """The cluster was asked."""

    def init(address: str) -> None:
        raise Reached(address)

    monkeypatch.setattr("ray.init", init)
    settings = load_settings(os.devnull, cluster={"address": "head.example.com:6379"})
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Reached, match=r"head\.example\.com"):
        start(settings, "127.0.0.1", taken.getsockname()[1])
