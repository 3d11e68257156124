"""One request from its source to its answer: admission, faces, batches through the scorers, and what is said of it."""

import asyncio
import io
import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from infra.errors import TypedError
from infra.settings import Settings
from infra.storage import Storage
from models.faces.extract import FaceCrops
from models.predictor import Crops, VideoPrediction
from models.registry import CHALLENGER, CHAMPION
from models.video.stills import is_still
from serve.admission import Admission
from serve.batching import Batcher, Item
from serve.faces import Extracted, Policies
from serve.following import Following, LiveScorer, Role
from serve.problems import Problem, of_typed
from serve.schemas import Abstention, Face, Model, Quality, ScoreAnswer, TaskAnswer, Timing, Value
from serve.telemetry import log, metrics
from serve.uploads import HEAD_BYTES, Source, first_bytes

Kind = Literal["image", "video"]


class Faces(Protocol):
    """What decodes and detects: in this process, or in a deployment of its own."""

    async def read(self, source: Source, wanted: tuple[Policies, ...]) -> dict[Policies, Extracted]:
        """The faces under each pair of policies; see `serve.faces.FaceReader.read`."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of the scorers.

    Attributes:
        tasks: to answer; empty: all.
        role: the scorer to ask; None: the champion, or the share of the challenger.
        several_people: what to do where a frame shows more than one face.
    """

    tasks: tuple[str, ...] = ()
    role: Role | None = None
    several_people: Literal["answer", "abstain"] = "answer"


class Engine:
    """Answers pictures and videos with the scorers in use.

    Args:
        settings: of the service.
        following: the scorers in use.
        images: what reads pictures.
        videos: what reads videos.
    """

    def __init__(
        self,
        settings: Settings,
        following: Following,
        images: Faces,
        videos: Faces,
    ) -> None:
        serving = settings.serving
        self.settings = settings
        self.following = following
        self.admission = Admission(
            serving.max_running, serving.max_waiting, serving.retry_after_s, max_wait_s=serving.max_request_s
        )
        self._faces: dict[Kind, Faces] = {"image": images, "video": videos}
        self._storage = Storage(settings.storage)
        self._batcher = Batcher(_predict, serving.max_batch_faces)
        self._shadows: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Stop what runs beside requests."""
        for task in self._shadows:
            task.cancel()
        self._batcher.close()

    async def score(self, source: Source, kind: Kind, wish: Wish, request_id: str, *, queued_s: float) -> ScoreAnswer:
        """The answer to a picture or a video.

        Args:
            source: where its bytes are.
            kind: what it must be.
            wish: what is asked.
            request_id: goes into the answer, and decides by which share of traffic it is answered.
            queued_s: seconds that it waited before.

        Raises:
            Problem: It is refused or broken, takes too long, or no scorer is ready.
        """
        start = time.perf_counter()
        live = self.chosen(wish, request_id)
        serving = self.settings.serving
        max_bytes = serving.max_image_bytes if kind == "image" else serving.max_video_bytes
        try:
            async with asyncio.timeout(serving.max_request_s):
                await self._check(source, max_bytes, kind)
                wanted = tuple(dict.fromkeys(scorer.policies for scorer in live))
                extracted = await self._faces[kind].read(source, wanted)
                some = next(iter(extracted.values()))
                read_at = time.perf_counter()
                predictions = await asyncio.gather(
                    *(self.predict(scorer, extracted[scorer.policies].crops.crops) for scorer in live)
                )
        except TimeoutError as error:
            raise Problem(
                504,
                "timeout",
                f"no answer within {serving.max_request_s:g} seconds",
                retry_after_s=serving.retry_after_s,
            ) from error
        done_at = time.perf_counter()
        answers = {
            scorer.task: task_answer(scorer, extracted[scorer.policies], prediction, wish.several_people)
            for scorer, prediction in zip(live, predictions, strict=True)
        }
        for task, item in answers.items():
            metrics().answers.inc(1, {"task": task, "version": item.model.version, "role": item.model.role})
            if item.abstention is not None:
                metrics().abstentions.inc(1, {"task": task, "reason": item.abstention.reason})
        self._shadow(live, extracted, answers, request_id)
        return ScoreAnswer(
            request_id=request_id,
            kind=kind,
            width=some.width,
            height=some.height,
            duration_s=some.duration_s,
            codec=some.codec,
            tasks=answers,
            timing=Timing(
                queue_ms=_ms(queued_s),
                faces_ms=_ms(read_at - start),
                predict_ms=_ms(done_at - read_at),
                total_ms=_ms(queued_s + time.perf_counter() - start),
            ),
        )

    def chosen(self, wish: Wish, request_id: str) -> list[LiveScorer]:
        """The scorers that answer a request.

        Raises:
            Problem: A task is unknown or has no such scorer, or none is ready.
        """
        known = self.following.tasks()
        tasks = wish.tasks or known
        if not tasks:
            raise Problem(503, "not_ready", "no scorer is ready yet", retry_after_s=5)
        found = []
        for task in tasks:
            if task not in known:
                told = f"task {task!r} is not answered here; answered: {', '.join(known) or 'none yet'}"
                if task in self.following.wanted:
                    raise Problem(503, "not_ready", told, retry_after_s=5)
                raise Problem(404, "unknown_task", told)
            role: Role = wish.role or self._by_share(task, request_id)
            scorer = self.following.get(task, role)
            if scorer is None:
                raise Problem(404, "no_challenger", f"task {task!r} has no {role} in use")
            found.append(scorer)
        return found

    async def predict(self, live: LiveScorer, crops: Crops) -> VideoPrediction:
        """One scorer's prediction of some crops, in a batch with those of other requests.

        Raises:
            Problem: 504 where it takes longer than a request may.
        """
        if not len(crops):
            return VideoPrediction(None, {})
        serving = self.settings.serving
        try:
            async with asyncio.timeout(serving.max_request_s):
                return await self._batcher.predict(Item(live, crops))
        except TimeoutError as error:
            raise Problem(504, "timeout", f"no prediction within {serving.max_request_s:g} seconds") from error

    def _by_share(self, task: str, request_id: str) -> Role:
        """Champion or challenger, by the share of traffic: the same id always gets the same."""
        share = self.settings.serving.challenger_share
        if share and self.following.get(task, CHALLENGER) is not None and _fraction(request_id) < share:
            return CHALLENGER
        return CHAMPION

    def _shadow(
        self,
        live: Sequence[LiveScorer],
        extracted: dict[Policies, Extracted],
        answers: dict[str, TaskAnswer],
        request_id: str,
    ) -> None:
        """Ask the challengers too, for the log alone, of a share of the requests that champions answered."""
        if not self.settings.serving.shadow_share or _fraction(request_id[::-1]) >= self.settings.serving.shadow_share:
            return
        for scorer in live:
            challenger = self.following.get(scorer.task, CHALLENGER)
            if scorer.role == CHAMPION and challenger is not None and challenger.policies in extracted:
                crops = extracted[challenger.policies].crops.crops
                task = asyncio.create_task(self._log_shadow(challenger, crops, answers[scorer.task], request_id))
                self._shadows.add(task)
                task.add_done_callback(self._shadows.discard)

    async def _log_shadow(self, live: LiveScorer, crops: Crops, champion: TaskAnswer, request_id: str) -> None:
        try:
            prediction = await self.predict(live, crops)
        except Exception as error:  # nobody waits for it
            log.warning("the shadow failed", extra={"request_id": request_id, "error": str(error)[:300]})
            return
        single = {name for name, value in (champion.values or {}).items() if not isinstance(value, list)}
        log.info(
            "shadow",
            extra={
                "request_id": request_id,
                "task": live.task,
                "champion": {"version": champion.model.version, "values": _only(champion.values, single)},
                "challenger": {"version": live.version, "values": _only(prediction.columns, single)},
            },
        )

    async def _check(self, source: Source, max_bytes: int, kind: Kind) -> None:
        """Refuse what is too large, or of the other kind, before a decoder is asked for."""
        head = source.data
        if source.uri is not None:
            try:
                head = await asyncio.to_thread(first_bytes, source.uri, self._storage, max_bytes, kind)
            except TypedError as error:
                raise of_typed(error, source.name) from error
        assert head is not None
        if is_still(io.BytesIO(head[:HEAD_BYTES])) == (kind == "image"):
            return
        if kind == "image":
            raise Problem(415, "not_an_image", f"{source.name}: no JPEG, PNG or WebP; a video is for /v1/videos:score")
        raise Problem(415, "not_a_video", f"{source.name}: a picture, which is for /v1/images:score")


def _predict(items: Sequence[Item]) -> list[VideoPrediction]:
    """Predictions of the items in order, in the thread of the networks: a scorer's go through its network together."""
    by_scorer: dict[int, list[int]] = {}
    for place, item in enumerate(items):
        by_scorer.setdefault(id(item.live), []).append(place)
    found: list[VideoPrediction | None] = [None] * len(items)
    for places in by_scorer.values():
        live = items[places[0]].live
        start = time.perf_counter()
        predictions = live.predictor.predict([items[place].crops for place in places])
        tags = {"task": live.task}
        metrics().predict.observe(time.perf_counter() - start, tags)
        metrics().batch_faces.observe(sum(len(items[place].crops) for place in places), tags)
        for place, prediction in zip(places, predictions, strict=True):
            found[place] = prediction
    return [prediction for prediction in found if prediction is not None]


def task_answer(
    live: LiveScorer, extracted: Extracted, prediction: VideoPrediction, several_people: Literal["answer", "abstain"]
) -> TaskAnswer:
    """What one scorer says of one picture or video."""
    crops = extracted.crops
    faces = [_face(extracted, prediction, number) for number in range(len(crops))]
    abstention = _abstention(crops, extracted.num_frames, several_people)
    return TaskAnswer(
        model=Model(task=live.task, role=live.role, version=live.version, digest=live.digest),
        abstention=abstention,
        values=None if abstention is not None or prediction.columns is None else _values(prediction.columns),
        num_frames=extracted.num_frames,
        num_faces=len(crops),
        dropped_frames=crops.dropped,
        faces=faces,
    )


def _abstention(crops: FaceCrops, num_frames: int, several_people: Literal["answer", "abstain"]) -> Abstention | None:
    if not len(crops):
        causes = {cause for cause in crops.dropped if cause != "no_face"}
        if not causes:
            return Abstention(reason="no_face", detail=f"no face was found in {num_frames} frames")
        counted = ", ".join(f"{count} {cause}" for cause, count in sorted(crops.dropped.items()))
        return Abstention(reason="low_quality", detail=f"no usable face in {num_frames} frames: {counted}")
    most = int(crops.faces_in_frame.max())
    if several_people == "abstain" and most > 1:
        return Abstention(reason="several_people", detail=f"up to {most} faces in one frame")
    return None


def _face(extracted: Extracted, prediction: VideoPrediction, number: int) -> Face:
    crops, scale = extracted.crops, extracted.scale
    landmarks = crops.landmarks[number]
    return Face(
        frame_index=int(crops.frame_index[number]),
        pts_s=_finite(crops.pts_s[number]),
        box=[round(float(value) * scale, 2) for value in crops.box[number]],
        landmarks=None if np.isnan(landmarks).any() else (landmarks * scale).round(2).tolist(),
        faces_in_frame=int(crops.faces_in_frame[number]),
        quality=Quality(
            confidence=float(crops.confidence[number]),
            size_px=float(crops.size_px[number]),
            sharpness=float(crops.sharpness[number]),
            brightness=float(crops.brightness[number]),
            yaw_deg=_finite(crops.yaw_deg[number]),
            roll_deg=_finite(crops.roll_deg[number]),
        ),
        values=_values({name: values[number] for name, values in prediction.faces.items()}),
    )


def _values(columns: dict[str, Any]) -> dict[str, Value]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in columns.items()}


def _only(values: dict[str, Any] | None, names: set[str]) -> dict[str, Any] | None:
    return None if values is None else {name: value for name, value in values.items() if name in names}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return zlib.crc32(text.encode()) / 2**32


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
