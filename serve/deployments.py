"""The two deployments: the ingress that holds the scorers and answers HTTP, and what decodes videos beside it."""

import asyncio
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from typing_extensions import override

from infra.errors import UserError
from infra.settings import Settings
from infra.tracking import tracking_client
from serve.api import create_app
from serve.batches import Batches, RayJobs
from serve.faces import Extracted, FaceReader, Policies
from serve.following import Following
from serve.problems import Problem
from serve.scoring import Engine, Faces
from serve.security import Gate, is_loopback
from serve.telemetry import log, log_as_json
from serve.uploads import Source


class Decoding:
    """Reads the faces of videos on CPUs, in limited child processes, away from the scorers."""

    def __init__(self, settings: Settings) -> None:
        log_as_json()
        self._reader = FaceReader(settings.storage, settings.serving, num_children=1)

    async def read(self, source: Source, wanted: tuple[Policies, ...]) -> dict[Policies, Extracted] | Problem:
        """As `FaceReader.read`; a refusal is a value here, so that it travels whole."""
        try:
            return await self._reader.read(source, wanted)
        except Problem as problem:
            return problem

    async def check_health(self) -> None:
        """Serve replaces a replica whose decoder cannot be started any more."""
        await self._reader.check()

    def __del__(self) -> None:
        if hasattr(self, "_reader"):
            self._reader.close()


class RemoteFaces(Faces):
    """The decoding deployment, as the engine sees it; a cancelled request is cancelled there too."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    @override
    async def read(self, source: Source, wanted: tuple[Policies, ...]) -> dict[Policies, Extracted]:
        response = self._handle.read.remote(source, wanted)
        try:
            found = await response
        except asyncio.CancelledError:
            cancel: Any = response.cancel
            cancel()  # a deadline that has passed is none of Ray's own cancellations
            raise
        except (RayError, BackPressureError) as error:
            log.error("the decoding deployment failed", extra={"error": str(error)[:500]})
            raise Problem(503, "decoder_unavailable", "the decoders do not answer", retry_after_s=5) from error
        if isinstance(found, Problem):
            raise found
        faces: dict[Policies, Extracted] = found
        return faces


@serve.ingress()
class Scoring:
    """Answers HTTP: holds the scorers of all tasks, reads pictures itself and hands videos to `Decoding`."""

    def __init__(self, settings: Settings, decoding: DeploymentHandle[Any] | None = None) -> None:
        log_as_json()
        serving = settings.serving
        host = listening_host()
        if serving.api_keys is None and not is_loopback(host):
            raise UserError(
                f"the service listens on {host or 'an unknown address'}: beyond loopback it needs API keys. "
                "Make one (python -m serve keys add NAME --file keys) and name the file in FACEREEL_SERVING__API_KEYS"
            )
        gate = Gate(serving.api_keys, serving.rate)
        reader = FaceReader(settings.storage, serving, num_children=max(1, round(serving.num_cpus)))
        following = Following(
            tracking_client(settings.tracking),
            serving.tasks,
            device=serving.device,
            batch_size=serving.max_batch_faces,
            poll_s=serving.poll_s,
            prepare=reader.prepare,
        )
        self._reader = reader
        videos = RemoteFaces(decoding) if decoding else reader
        self._engine = Engine(settings, following, reader, videos)
        self._gate = gate
        self._batches = None
        if serving.batches is not None:
            self._batches = Batches(settings, RayJobs(serving.dashboard))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve puts behind its HTTP server."""
        return create_app(self._engine, self._gate, self._batches, behind_serve=True)

    async def check_health(self) -> None:
        """Serve replaces a replica whose decoders cannot be started any more."""
        await self._reader.check()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()
            self._reader.close()


def listening_host() -> str | None:
    """The address that Serve's HTTP servers listen on; None where it cannot be told."""
    try:
        from ray.serve.context import _get_global_client

        client: Any = _get_global_client()
        host = client.http_config.host
    except Exception as error:  # an inner name of Serve's: without it the service asks for keys
        log.warning("the listening address is not known", extra={"error": str(error)[:300]})
        return None
    return str(host) if host is not None else None


def application(settings: Settings) -> serve.Application:
    """The service by its settings: replicas, CPUs, GPUs and queues."""
    serving = settings.serving
    grace_s = serving.max_body_s + serving.max_request_s + 10  # of a replica that ends: requests in work are answered
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": serving.num_cpus, "num_gpus": serving.num_gpus},
        # The queue is ours (`serve.admission`), which answers at once; Serve's own stands behind it.
        "max_ongoing_requests": 4 * (serving.max_running + serving.max_waiting),
        "graceful_shutdown_timeout_s": grace_s,
        **_scale(serving.num_replicas, serving.max_replicas, serving.max_running),
    }
    if not serving.num_decoders:
        return serve.deployment(**options)(Scoring).bind(settings)
    decoding = serve.deployment(
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=2,  # one in work, one that has arrived
        max_queued_requests=serving.max_running + serving.max_waiting,
        graceful_shutdown_timeout_s=grace_s,
        **_scale(serving.num_decoders, serving.max_decoders, 1),
    )(Decoding).bind(settings)
    return serve.deployment(**options)(Scoring).bind(settings, decoding)


def _scale(least: int, most: int, target: int) -> dict[str, Any]:
    if most == least:
        return {"num_replicas": least}
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": max(1, target // 2),
        }
    }
