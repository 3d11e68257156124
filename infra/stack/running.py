"""The stack up and down: which server starts after which, what is said of each, and what happens when one fails."""

import contextlib
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from infra.stack import mlflow_server, postgres, prometheus, ray_nodes, swift
from infra.stack.processes import ProcessRecord, stop
from infra.stack.stack import Stack
from infra.stack.state import StackFolder, State

GRAFANA = (
    "grafana     no package of it in Debian, PyPI or npm: import infra/grafana/facereel.json into one of yours, "
    "its data source is the Prometheus above"
)


def up(folder: StackFolder, swift_venv: Path) -> Stack:
    """Start what does not run yet, and write the environment file; a start that fails takes back all of it.

    Raises:
        UserError: Something is not installed.
        StartFailed: A server did not come up.
    """
    with folder.lock(), _interruptible():
        state = folder.read()
        if state is not None and state.is_ready and all(record.is_alive for record in state.processes):
            print("the stack runs already")
            return Stack(folder, state)
        if state is not None:
            ended = [record.name for record in state.processes if not record.is_alive]
            print(f"an earlier stack is broken ({', '.join(ended) or 'not all of it had started'}): stopping its rest")
            _take_down(folder, state)
        stack = Stack(folder, State())
        folder.write(stack.state)
        try:
            _start(stack, swift_venv)
        except BaseException:
            print("the start failed: stopping what had started", flush=True)
            _take_down(folder, stack.state)
            raise
        variables = ray_nodes.client_environment(stack) | _for_tests(stack)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        folder.write_secret(folder.env, "\n".join(lines) + "\n")
        stack.state.is_ready = True
        folder.write(stack.state)
        return stack


def _start(stack: Stack, swift_venv: Path) -> None:
    postgres.start_postgres(stack)
    swift.start_swift(stack, swift_venv)
    stack.wait("postgres", partial(postgres.make_database, stack))
    stack.wait("s3-proxy", partial(swift.make_buckets, stack))
    _say(stack, "postgres", "s3-proxy")
    mlflow_server.start_mlflow(stack)
    ray_nodes.start_head(stack)
    stack.wait("ray-head", lambda: ray_nodes.has_started(stack, "head"))
    with_prometheus = prometheus.start_prometheus(stack)
    stack.wait("ray-head", partial(ray_nodes.dashboard_listens, stack))
    _say(stack, "ray-head")
    for name in ray_nodes.WORKERS:
        ray_nodes.start_worker(stack, name)
        stack.wait(f"ray-{name}", partial(ray_nodes.has_started, stack, name))
        _say(stack, f"ray-{name}")
    stack.wait("mlflow", partial(mlflow_server.answers, f"{mlflow_server.tracking_uri(stack)}/health"))
    _say(stack, "mlflow")
    if with_prometheus:
        stack.wait("prometheus", partial(mlflow_server.answers, f"{prometheus.address(stack)}/-/ready"))
        _say(stack, "prometheus")


def down(folder: StackFolder) -> None:
    """Stop exactly what was started; data and logs stay."""
    with folder.lock():
        state = folder.read()
        if state is None:
            print("no stack runs here")
            return
        _take_down(folder, state)


def _take_down(folder: StackFolder, state: State) -> None:
    living = [record for record in state.processes if record.is_alive]
    killed = stop(state.processes, state.id)
    if state.ray_link:
        Path(state.ray_link).unlink(missing_ok=True)
    folder.forget()
    forced = f"; {killed} of what they had started had to be killed" if killed else ""
    print(f"stopped {len(living)} of {len(state.processes)} processes{forced}; data and logs stay in {folder.path}")


def show(stack: Stack) -> None:
    """A line a server: what it is and where, by pid."""
    for record in stack.state.processes:
        if record.what.startswith("its part"):
            continue
        print(_line(record))
    if not any(record.name == "prometheus" for record in stack.state.processes):
        print("prometheus  not on this machine, nor to be had from Debian: metrics are at the Ray nodes' ports alone")
    print(GRAFANA)
    print(f"logs        {stack.folder.logs}")
    print(f"use it      source {stack.folder.env}   (then: ray job submit --working-dir . -- python -m ray_jobs …)")


def _say(stack: Stack, *names: str) -> None:
    for record in stack.state.processes:
        if record.name in names:
            print(f"  up: {_line(record)}", flush=True)


def _line(record: ProcessRecord) -> str:
    state = f"pid {record.pid}" if record.is_alive else "HAS ENDED, see " + str(record.log)
    return f"{record.name:<11} {record.what} ({state})"


def _for_tests(stack: Stack) -> dict[str, str]:
    """What the tests that need a real server ask for."""
    state = stack.state
    found = {
        "FACEREEL_TEST_S3_ENDPOINT": swift.endpoint(stack),
        "FACEREEL_TEST_S3_KEY": swift.access_key(stack),
        "FACEREEL_TEST_S3_SECRET": state.s3_secret,
        "FACEREEL_TEST_S3_BUCKET": swift.BUCKETS[0],
    }
    if any(record.name == "prometheus" for record in state.processes):
        found["FACEREEL_TEST_PROMETHEUS"] = prometheus.address(stack)
    nodes = ("head", *ray_nodes.WORKERS)
    found["FACEREEL_TEST_METRICS_PORTS"] = " ".join(str(state.ports[f"{node}_metrics"]) for node in nodes)
    return found


@contextmanager
def _interruptible() -> Iterator[None]:
    """A signal to end becomes an exception, so that what had started is stopped."""

    def end(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)
