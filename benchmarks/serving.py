"""The service beside bare FastAPI + uvicorn around the same predictor, in one run on one machine.

    python -m benchmarks.serving                       throughput and latency, 1 to 32 clients
    python -m benchmarks.serving overload              five times the load that it can bear (--seconds)

One request is one crop of 224 pixels as the Open Inference Protocol's binary tensor, answered as JSON. ``nothing`` is a
predictor that answers at once, so that all that is left is the way there and back; ``resnet18`` is a real backbone.
Clients and servers share the machine: look at the ratios.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import psutil
import torch
import uvicorn
from fastapi import FastAPI, Request
from rich.console import Console
from rich.table import Table

from serve.__main__ import ENVIRONMENT

os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from infra.settings import load_settings
from models.faces.policy import FacePolicy
from models.network import build_network
from models.predictor import Predictor, VideoPrediction
from models.scorer import ScorerManifest, TrainingSummary, load_scorer, save_scorer
from models.tasks.base import get_task
from models.transforms import InputConfig
from models.video.sampling import FramePolicy
from serve.api import create_app
from serve.faces import FaceReader
from serve.following import Following, LiveScorer
from serve.scoring import Engine
from serve.security import Gate

SIZE = 224
TASK = "fs2k"
CLIENTS = (1, 4, 16, 32)


class Nothing:
    """A predictor that answers the same at once; all else of it is the real one's."""

    def __init__(self, real: Predictor) -> None:
        self.scorer, self.task = real.scorer, real.task
        (self._answer,) = real.predict([np.zeros((1, SIZE, SIZE, 3), np.uint8)])

    def predict(self, crops_per_video: Sequence[Any]) -> list[VideoPrediction]:
        """One and the same for each."""
        return [self._answer for _ in crops_per_video]


def make_scorer(folder: Path, backbone: str) -> None:
    task = get_task(TASK)
    torch.manual_seed(0)
    manifest = ScorerManifest(
        task=TASK,
        heads=task.heads,
        backbone=backbone,
        input=InputConfig(size=SIZE),
        frame_policy=FramePolicy(),
        face_policy=FacePolicy(crop_size=SIZE),
        metrics={task.best_metric: 0.5},
        baseline_metrics={task.best_metric: 0.5},
        dataset_fingerprint="none",
        code_version="benchmark",
        training=TrainingSummary(num_epochs=0, best_epoch=0, num_train_rows=0, num_val_rows=0),
    )
    save_scorer(folder, build_network(backbone, task.heads), manifest)


def predictor_of(folder: str, kind: str) -> Any:
    torch.set_num_threads(1)
    real = Predictor(load_scorer(Path(folder)))
    return Nothing(real) if kind == "nothing" else real


def bare_app(folder: str, kind: str) -> FastAPI:
    """FastAPI around the predictor, and nothing else."""
    predictor, thread, app = predictor_of(folder, kind), ThreadPoolExecutor(1), FastAPI()

    @app.post("/v2/models/fs2k/infer")
    async def infer(request: Request) -> dict[str, Any]:
        body = await request.body()
        length = int(request.headers["Inference-Header-Content-Length"])
        shape = json.loads(body[:length])["inputs"][0]["shape"]
        crops = np.frombuffer(body[length:], np.uint8).reshape(shape)
        (prediction,) = await asyncio.get_running_loop().run_in_executor(thread, predictor.predict, [crops])
        outputs = [{"name": name, "data": np.asarray(data).ravel().tolist()} for name, data in prediction.faces.items()]
        return {"outputs": outputs}

    return app


def bare(folder: str, kind: str, port: int) -> None:
    """The same behind uvicorn."""
    uvicorn.run(bare_app(folder, kind), host="127.0.0.1", port=port, log_config=None, access_log=False)


@serve.ingress()
class BareServing:
    """The bare application behind Ray Serve and HAProxy: what these cost by themselves."""

    def __init__(self, folder: str, kind: str) -> None:
        self._given = folder, kind

    def __serve_build_asgi_app__(self) -> FastAPI:
        return bare_app(*self._given)


@serve.ingress()
class Serving:
    """The service's own application and engine, with a predictor that is given instead of the registry's."""

    def __init__(self, folder: str, kind: str, batches: bool, serving: dict[str, Any]) -> None:
        settings = load_settings("/dev/null", serving=serving if batches else serving | {"max_batch_faces": 1})
        predictor = predictor_of(folder, kind)
        reader = FaceReader(settings.storage, settings.serving, num_children=1)
        following = Following(NO_REGISTRY, ())
        following.take(LiveScorer(TASK, "champion", "1", predictor.scorer.digest, predictor))
        self._engine = Engine(settings, following, reader, reader)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._engine, Gate(None, "1/second"), None, follow=False)


NO_REGISTRY: Any = None
PARTS = 4  # of the overload, so that memory that grows on is seen


@dataclass(frozen=True)
class Load:
    """What clients saw: requests a second that were answered, and times in milliseconds."""

    rate: float
    p50: float
    p99: float
    refused: int = 0
    refused_p99: float = 0.0
    failed: int = 0


def body_of() -> tuple[bytes, dict[str, str]]:
    crop = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8).tobytes()
    tensor = {"name": "crops", "shape": [1, SIZE, SIZE, 3], "datatype": "UINT8"}
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(crop)}}]}).encode()
    return header + crop, {"Inference-Header-Content-Length": str(len(header))}


async def load(url: str, num_clients: int, seconds: float) -> Load:
    """So many clients, each with one request after the other."""
    body, headers = body_of()
    times: list[float] = []
    refused: list[float] = []
    failed = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=num_clients)) as session:
        end = time.perf_counter() + seconds

        async def client() -> None:
            nonlocal failed
            while time.perf_counter() < end:
                start = time.perf_counter()
                async with session.post(url, data=body, headers=headers) as response:
                    await response.read()
                    took = time.perf_counter() - start
                    if response.status == 200:
                        times.append(took)
                    elif response.status == 429:
                        refused.append(took)
                        await asyncio.sleep(0.05)
                    else:
                        failed += 1

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(num_clients)))
        took = time.perf_counter() - start
    p50, p99 = (float(np.percentile(times, q)) * 1000 for q in (50, 99))
    late = float(np.percentile(refused, 99)) * 1000 if refused else 0.0
    return Load(len(times) / took, p50, p99, len(refused), late, failed)


async def arrivals(url: str, rate: float, seconds: float) -> Load:
    """Requests that come at a rate, whether those before are answered or not; nobody tries again."""
    body, headers = body_of()
    times: list[float] = []
    refused: list[float] = []
    failed = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            nonlocal failed
            start = time.perf_counter()
            try:
                async with session.post(url, data=body, headers=headers) as response:
                    await response.read()
                    took = time.perf_counter() - start
                    if response.status in (200, 429):
                        (times if response.status == 200 else refused).append(took)
                    else:
                        failed += 1
            except aiohttp.ClientError:
                failed += 1

        tasks = set()
        start = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
            tasks.add(asyncio.create_task(one()))
        await asyncio.gather(*tasks)
        took = time.perf_counter() - start
    p50, p99 = (float(np.percentile(times, q)) * 1000 for q in (50, 99))
    late = float(np.percentile(refused, 99)) * 1000 if refused else 0.0
    return Load(len(times) / took, p50, p99, len(refused), late, failed)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def deploy(name: str, folder: Path, kind: str, *, batches: bool | None, **serving: Any) -> str:
    """The path of a new application: ours with or without batches, or the bare one (None)."""
    options = {"max_running": 64, "max_waiting": 256} | serving
    given = (str(folder), kind) if batches is None else (str(folder), kind, batches, options)
    served = BareServing if batches is None else Serving
    app = serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})(served).bind(*given)
    serve.run(app, name=name, route_prefix=f"/{name}")
    return f"/{name}/v2/models/{TASK}/infer"


def compare(console: Console, folder: Path, port: int, seconds: float, rounds: int) -> None:
    table = Table(title=f"the service beside bare FastAPI + uvicorn: medians of {rounds} rounds of {seconds:g} s")
    for name in (
        "predictor",
        "clients",
        "bare req/s",
        "Serve alone",
        "service",
        "unbatched",
        "p50 bare",
        "service",
        "p99 bare",
        "service",
    ):
        table.add_column(name, justify="left" if name == "predictor" else "right")
    for kind in ("nothing", "resnet18"):
        bare_port = free_port()
        server = multiprocessing.get_context("spawn").Process(
            target=bare, args=(str(folder), kind, bare_port), daemon=True
        )
        server.start()
        wait_for(bare_port)
        base = f"http://127.0.0.1:{port}"
        urls = {
            "bare": f"http://127.0.0.1:{bare_port}/v2/models/{TASK}/infer",
            "alone": base + deploy(f"{kind}-alone", folder, kind, batches=None),
            "service": base + deploy(f"{kind}-batched", folder, kind, batches=True),
            "unbatched": base + deploy(f"{kind}-single", folder, kind, batches=False),
        }
        for url in urls.values():
            asyncio.run(load(url, 4, 2))
        for num_clients in CLIENTS:
            found: dict[str, list[Load]] = {name: [] for name in urls}
            for _ in range(rounds):
                for name, url in urls.items():
                    found[name].append(asyncio.run(load(url, num_clients, seconds)))
            assert not any(one.failed or one.refused for loads in found.values() for one in loads)
            middle = {
                name: [median(getattr(one, field) for one in loads) for field in ("rate", "p50", "p99")]
                for name, loads in found.items()
            }
            own, other, single = middle["service"], middle["bare"], middle["unbatched"]
            table.add_row(
                kind,
                str(num_clients),
                f"{other[0]:.0f}",
                f"{middle['alone'][0] / other[0]:.0%}",
                f"{own[0] / other[0]:.0%}",
                f"{single[0] / other[0]:.0%}",
                f"{other[1]:.1f} ms",
                f"{own[1] / other[1]:.2f}×",
                f"{other[2]:.1f} ms",
                f"{own[2] / other[2]:.2f}×",
            )
        for name in ("alone", "batched", "single"):
            serve.delete(f"{kind}-{name}")
        server.terminate()
    console.print(table)


def memory_mb() -> float:
    """Resident memory of the replicas."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica" in " ".join(process.cmdline()):
                total += process.memory_info().rss
        except psutil.Error:
            continue
    return total / 2**20


def overload(console: Console, folder: Path, port: int, seconds: float) -> None:
    """As many clients as are let in, then five times the requests that these got answered, come what may."""
    running, waiting = 4, 4
    path = deploy("overload", folder, "resnet18", batches=True, max_running=running, max_waiting=waiting)
    url = f"http://127.0.0.1:{port}{path}"
    asyncio.run(load(url, 4, 2))
    table = Table(
        title=f"{running} requests in work, {waiting} in the queue, then 5 × the load for {seconds:g} s; ResNet-18"
    )
    for name in ("load", "answered/s", "p50", "p99", "refused", "refused p99", "failed", "memory"):
        table.add_column(name, justify="right")
    usual = asyncio.run(load(url, running + waiting, min(seconds, 30)))
    rows = [(f"{running + waiting} clients", usual, memory_mb())]
    for part in range(1, PARTS + 1):
        found = asyncio.run(arrivals(url, 5 * usual.rate, seconds / PARTS))
        rows.append((f"{5 * usual.rate:.0f} requests/s, {part} of {PARTS}", found, memory_mb()))
    for name, one, now in rows:
        times = (f"{value:.0f} ms" for value in (one.p50, one.p99))
        refusals = (str(one.refused), f"{one.refused_p99:.0f} ms", str(one.failed))
        table.add_row(name, f"{one.rate:.1f}", *times, *refusals, f"{now:.0f} MB")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help="compare (default), overload")
    parser.add_argument("--seconds", type=float, default=None, help="of each measurement (4; overload 120)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the comparison (3)")
    given = parser.parse_args()
    chosen = given.what or ["compare"]
    if unknown := set(chosen) - {"compare", "overload"}:
        parser.error(f"no measurement {', '.join(sorted(unknown))}")
    console, port = Console(width=130), free_port()
    ray.init(address="local", num_cpus=8, log_to_driver=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    with tempfile.TemporaryDirectory(prefix="facereel-serving-") as folder:
        scorer = Path(folder) / "scorer"
        make_scorer(scorer, "resnet18")
        try:
            if "compare" in chosen:
                compare(console, scorer, port, given.seconds or 4, given.rounds)
            if "overload" in chosen:
                overload(console, scorer, port, given.seconds or 120)
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
