"""The local stack without its servers: ports, processes that are stopped by their records alone, state, refusals."""

import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.errors import UserError
from infra.stack import ray_nodes, running
from infra.stack.ports import free_ports
from infra.stack.processes import MARK, ProcessRecord, launch, stop
from infra.stack.programs import prometheus_program, swift_program, unpack_prometheus
from infra.stack.stack import Stack, StartFailed
from infra.stack.state import StackFolder, State
from infra.stack.swift import start_swift
from serve.__main__ import ENVIRONMENT

MINE = f"mine-{secrets.token_hex(4)}"  # a suite that runs beside this one has its own
SLEEP = "import time; time.sleep(600)"
# A parent that ends at once; its child goes on.
ORPHAN = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)


def started(folder: Path, code: str, stack_id: str, name: str = "one") -> ProcessRecord:
    env = dict(os.environ) | {MARK: stack_id}
    return launch(name, [sys.executable, "-c", code], "a test", folder / f"{name}.log", env)


def marked(stack_id: str) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get(MARK) == stack_id and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except psutil.Error:
            continue
    return found


def test_ports_are_free_different_and_below_those_of_outgoing_connections() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < lowest
    for port in ports:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


def test_only_what_was_started_is_stopped(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", SLEEP], env=os.environ | {MARK: "another stack"})
    try:
        records = [started(tmp_path, SLEEP, MINE, f"n{number}") for number in range(2)]
        assert all(record.is_alive for record in records)
        assert stop(records, MINE) == 0
        assert not any(record.is_alive for record in records)
        assert marked(MINE) == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_process_with_the_number_of_an_ended_one_is_left_alone(tmp_path: Path) -> None:
    record = started(tmp_path, SLEEP, MINE)
    try:
        earlier = record.model_copy(update={"started": str(int(record.started) - 1)})
        assert not earlier.is_alive
        assert stop([earlier], "not mine") == 0
        assert record.is_alive
        of_another_boot = record.model_copy(update={"boot": "another"})
        assert not of_another_boot.is_alive
    finally:
        stop([record], MINE)


def test_what_has_lost_its_parent_is_found_by_its_mark(tmp_path: Path) -> None:
    record = started(tmp_path, ORPHAN, MINE)
    deadline = time.monotonic() + 20
    while (record.is_alive or not marked(MINE)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(marked(MINE)) == 1
    stop([record], MINE)
    assert marked(MINE) == []


def test_what_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.stack.processes.GRACE_S", 0.5)
    record = started(tmp_path, STUBBORN, MINE)
    while "ready" not in (tmp_path / "one.log").read_text():
        assert record.is_alive
        time.sleep(0.05)
    assert stop([record], MINE) == 1
    assert not record.is_alive


def test_state_is_kept_and_its_secrets_are_the_owners(tmp_path: Path) -> None:
    folder = StackFolder(tmp_path / "stack")
    assert folder.read() is None
    folder.make()
    state = State(processes=[started(tmp_path, "pass", "x")])
    folder.write(state)
    assert folder.read() == state
    assert (folder.path / "state.json").stat().st_mode & 0o077 == 0
    folder.forget()
    assert folder.read() is None


def test_one_command_at_a_time(tmp_path: Path) -> None:
    folder = StackFolder(tmp_path)
    with folder.lock(), pytest.raises(UserError, match="another command"), StackFolder(tmp_path).lock():
        pass


def test_a_failed_start_takes_back_what_it_started_and_shows_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = []

    def start(stack: Stack, swift_venv: Path) -> None:
        ids.append(stack.state.id)
        stack.launch("good", [sys.executable, "-c", SLEEP], "lasts")
        stack.launch("bad", [sys.executable, "-c", "print('no room'); raise SystemExit(3)"], "does not")
        stack.wait("bad", lambda: False)

    monkeypatch.setattr(running, "_start", start)
    folder = StackFolder(tmp_path / "stack")
    with pytest.raises(StartFailed, match="bad has ended") as caught:
        running.up(folder, tmp_path)
    assert "no room" in str(caught.value)
    assert marked(ids[0]) == []
    assert folder.read() is None
    assert "stopped 1 of 2 processes" in capsys.readouterr().out


def test_up_again_changes_nothing_and_a_broken_stack_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(stack: Stack, swift_venv: Path) -> None:
        for name in ("one", "two"):
            stack.launch(name, [sys.executable, "-c", SLEEP], "lasts")

    monkeypatch.setattr(running, "_start", start)
    folder = StackFolder(tmp_path / "stack")
    first = running.up(folder, tmp_path)
    try:
        assert folder.env.stat().st_mode & 0o077 == 0
        assert running.up(folder, tmp_path).state == first.state
        psutil.Process(first.state.processes[0].pid).kill()
        while first.state.processes[0].is_alive:
            time.sleep(0.05)
        second = running.up(folder, tmp_path)
        assert "an earlier stack is broken (one)" in capsys.readouterr().out
        assert marked(first.state.id) == []
        assert all(record.is_alive for record in second.state.processes)
    finally:
        running.down(folder)
    assert marked(second.state.id) == []
    assert not folder.env.exists()
    running.down(folder)
    assert "no stack runs here" in capsys.readouterr().out


def test_credentials_of_a_cloud_do_not_reach_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of a cloud")
    monkeypatch.setenv("FACEREEL_TRACKING__URI", "http://elsewhere")
    env = Stack(StackFolder(tmp_path), State()).environment({"A": "b"})
    assert "AWS_SECRET_ACCESS_KEY" not in env
    assert "FACEREEL_TRACKING__URI" not in env
    assert env["A"] == "b"


def test_the_client_environment_is_valid_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.settings import load_settings

    stack = Stack(StackFolder(tmp_path), State())
    for name in os.environ:
        if name.startswith("FACEREEL_"):
            monkeypatch.delenv(name)
    for name, value in (ray_nodes.client_environment(stack) | running._for_tests(stack)).items():
        monkeypatch.setenv(name, value)
    settings = load_settings(os.devnull)
    assert settings.storage.endpoint_url == f"http://127.0.0.1:{stack.state.ports['s3']}"
    assert settings.prices.cpu_hour > 0


def test_nodes_know_what_the_service_needs() -> None:
    assert ray_nodes.SERVE_ENVIRONMENT == ENVIRONMENT


def program(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", "PATH=/usr/bin:/bin", *lines]))
    path.chmod(0o755)


def test_prometheus_is_unpacked_once_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "debian"

    def unpacked() -> Path | None:
        unpack_prometheus(folder)
        return prometheus_program("promtool", folder)

    assert unpacked() is None  # no Debian
    program(tmp_path / "dpkg-deb", 'mkdir -p "$3/usr/bin" && touch "$3/usr/bin/promtool" "$3/usr/bin/prometheus"')
    program(tmp_path / "apt-get", "exit 100")
    assert unpacked() is None  # its index does not answer
    program(tmp_path / "apt-get", "touch prometheus_2_amd64.deb")
    assert unpacked() == folder / "usr" / "bin" / "promtool"
    assert {path.name for path in folder.iterdir()} == {"usr"}
    program(tmp_path / "apt-get", "exit 100")
    assert unpacked() == folder / "usr" / "bin" / "promtool"


def test_missing_swift_is_said_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make stack"):
        swift_program(tmp_path, "swift-proxy-server")
    folder = StackFolder(tmp_path / "stack")
    folder.make()
    with pytest.raises(UserError, match="Swift"):
        start_swift(Stack(folder, State()), tmp_path)
