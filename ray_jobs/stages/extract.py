"""Fetch, decode, detect, crop: one video in, one row of face crops out. Runs as Ray Data tasks on CPUs."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field

from infra.errors import TypedError
from infra.settings import StorageSettings
from infra.storage import ObjectChanged
from models.faces.detect import FaceDetector, build_detector
from models.faces.extract import FaceCrops, extract_faces
from models.faces.policy import FacePolicy
from models.video.errors import DecoderCrashed, OutOfMemory
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from models.video.sandbox import Decoded, DecodeSandbox

FACE_TYPE = pa.struct(
    [
        ("frame_index", pa.int64()),
        ("pts_s", pa.float64()),
        ("box", pa.list_(pa.float32())),  # left, top, right, bottom; pixels
        *[(name, pa.float32()) for name in ("confidence", "size_px", "sharpness", "brightness", "yaw_deg", "roll_deg")],
        ("faces_in_frame", pa.int32()),  # confident ones of the policy's least size
    ]
)
# What extraction adds to a row. `crops` is uint8[num_faces, S, S, 3] as raw bytes: a fixed Arrow type whatever the
# number of faces, and one copy less than a tensor of varying shape.
EXTRACT_FIELDS = [
    pa.field("reason", pa.string()),  # null: the video was decoded
    pa.field("retryable", pa.bool_()),
    pa.field("message", pa.string()),
    pa.field("num_tries", pa.int32()),  # in this run
    pa.field("read_etag", pa.string()),
    pa.field("read_sha256", pa.string()),
    pa.field("read_bytes", pa.int64()),  # size of the object
    pa.field("fetched_bytes", pa.int64()),  # what was read of it
    pa.field("num_frames", pa.int32()),
    pa.field("num_faces", pa.int32()),
    pa.field("dropped", pa.map_(pa.string(), pa.int32())),
    pa.field("crops", pa.large_binary()),
    pa.field("faces", pa.list_(FACE_TYPE)),
    pa.field("extract_s", pa.float32()),
]


class ExtractConfig(BaseModel):
    """Everything that decides which crops a video gives, and under which limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame_policy: FramePolicy
    face_policy: FacePolicy
    limits: DecodeLimits = DecodeLimits()
    storage: StorageSettings
    device: str = "cpu"
    with_digest: bool = Field(False, description="compute the SHA-256 of every object, and hold it to the catalog's")
    max_tries: int = Field(3, ge=1, description="tries of a video whose failure may pass, the first included")
    retry_wait_s: float = Field(1.0, ge=0, description="wait before the second try, seconds; then four times longer")


class Extractor:
    """One process's decoding child and face detector, reused from video to video."""

    def __init__(self, config: ExtractConfig) -> None:
        self._config = config
        self._sandbox = DecodeSandbox(config.storage)
        self._sandbox.start()
        self._detector: FaceDetector = build_detector(config.face_policy, device=config.device)

    def extract(self, uri: str, etag: str | None, sha256: str | None = None) -> dict[str, Any]:
        """The values of ``EXTRACT_FIELDS`` for one video; a failure is a row with its reason, never an exception.

        What may pass is tried again here, a few times; what still fails then is said with ``retryable``.

        Args:
            uri: Where it is.
            etag: The version that was planned; None: the one found.
            sha256: The content that was planned; given (and digests computed), it counts instead of the etag.
        """
        start = time.perf_counter()
        row: dict[str, Any] = {field.name: None for field in EXTRACT_FIELDS}
        for num_tries in range(1, self._config.max_tries + 1):
            row["num_tries"] = num_tries
            try:
                decoded = self._decode(uri, etag, sha256)
            except TypedError as error:
                row |= {"reason": error.reason, "retryable": error.retryable, "message": str(error)[:500]}
                pinned = sha256 if self._config.with_digest else etag
                if num_tries == self._config.max_tries or not self._may_pass(error, num_tries, pinned=pinned):
                    break
                time.sleep(self._config.retry_wait_s * 4 ** (num_tries - 1))
                continue
            sampled = decoded.sampled
            crops = extract_faces(sampled.frames, self._config.face_policy, self._detector)
            row |= {
                "reason": None,
                "retryable": None,
                "message": None,
                "read_etag": decoded.stat.etag,
                "read_sha256": decoded.sha256,
                "read_bytes": decoded.stat.size_bytes,
                "fetched_bytes": decoded.fetched_bytes,
                "num_frames": len(sampled.frames),
                "num_faces": len(crops.crops),
                "dropped": list(crops.dropped.items()),
                "crops": crops.crops.tobytes(),
                "faces": face_rows(crops),
            }
            break
        row["extract_s"] = time.perf_counter() - start
        return row

    def _decode(self, uri: str, etag: str | None, sha256: str | None) -> Decoded:
        config = self._config
        expected = sha256 if config.with_digest else None
        decoded = self._sandbox.decode(
            uri,
            config.frame_policy,
            config.limits,
            etag=None if expected else etag,
            with_digest=config.with_digest,
            sha256=expected,
        )
        decoded.refuse_if_all_damaged()
        return decoded

    @staticmethod
    def _may_pass(error: TypedError, num_tries: int, *, pinned: str | None) -> bool:
        """Is another try worth it?"""
        if isinstance(error, ObjectChanged):
            return pinned is None  # the planned version is gone for good
        if isinstance(error, DecoderCrashed | OutOfMemory):
            return num_tries == 1  # the process may have been killed for what its neighbours took
        return error.retryable


def face_rows(crops: FaceCrops) -> list[dict[str, Any]]:
    """One dict a face, as in ``FACE_TYPE``."""
    return [
        {field.name: _plain(getattr(crops, field.name)[face]) for field in FACE_TYPE}
        for face in range(len(crops.crops))
    ]


def _plain(value: np.generic | np.ndarray) -> Any:
    return value.tolist()


def unpack_crops(data: bytes, size: int) -> np.ndarray:
    """``uint8[n, size, size, 3]`` from the bytes of a row's ``crops``."""
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, size, size, 3)


_extractors: dict[str, Extractor] = {}


def _extractor(config: ExtractConfig) -> Extractor:
    """This process's extractor for the config: Ray reuses worker processes, and loading a detector takes a second."""
    key = config.model_dump_json()
    if key not in _extractors:
        # Ray runs as many of these tasks as there are CPUs: threads inside each would only fight.
        torch.set_num_threads(1)
        _extractors[key] = Extractor(config)
    return _extractors[key]


def extract_stage(config: ExtractConfig) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """The Ray Data function: a table of ``video_id, uri, etag, …`` in, the same rows with ``EXTRACT_FIELDS`` out.

    A task yields one row at a time, so a block of long videos does not hold back the first ones.
    """

    def extract(batch: pa.Table) -> Iterator[pa.Table]:
        extractor = _extractor(config)
        for index in range(batch.num_rows):
            one = batch.slice(index, 1)
            expected = [one[name][0].as_py() if name in one.column_names else None for name in ("etag", "sha256")]
            values = extractor.extract(one["uri"][0].as_py(), *expected)
            for field in EXTRACT_FIELDS:
                one = one.append_column(field, pa.array([values[field.name]], type=field.type))
            yield one

    return extract


def policy_digest(frame_policy: FramePolicy, face_policy: FacePolicy) -> str:
    """16 hex digits that name a frame and a face policy: the part of a score row's key that decides the crops."""
    canonical = json.dumps([frame_policy.model_dump(mode="json"), face_policy.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
