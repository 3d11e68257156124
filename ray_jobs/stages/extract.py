"""Fetch, decode, detect, crop: one video in, one row of face crops out. Runs as Ray Data tasks on CPUs."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict

from infra.errors import TypedError
from infra.settings import StorageSettings
from models.faces.detect import FaceDetector, build_detector
from models.faces.extract import FaceCrops, extract_faces
from models.faces.policy import FacePolicy
from models.video.errors import Corrupt
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy
from models.video.sandbox import DecodeSandbox

FACE_TYPE = pa.struct(
    [
        ("frame_index", pa.int64()),
        ("pts_s", pa.float64()),
        ("box", pa.list_(pa.float32(), 4)),
        *[(name, pa.float32()) for name in ("confidence", "size_px", "sharpness", "brightness", "yaw_deg", "roll_deg")],
    ]
)
# What extraction adds to a row. `crops` is uint8[num_faces, S, S, 3] as raw bytes: a fixed Arrow type whatever the
# number of faces, and one copy less than a tensor of varying shape.
EXTRACT_FIELDS = [
    pa.field("reason", pa.string()),  # null: the video was decoded
    pa.field("retryable", pa.bool_()),
    pa.field("message", pa.string()),
    pa.field("read_etag", pa.string()),
    pa.field("read_bytes", pa.int64()),
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


class Extractor:
    """One process's decoding child and face detector, reused from video to video."""

    def __init__(self, config: ExtractConfig) -> None:
        self._config = config
        self._sandbox = DecodeSandbox(config.storage)
        self._detector: FaceDetector = build_detector(config.face_policy, device=config.device)

    def extract(self, uri: str, etag: str | None) -> dict[str, Any]:
        """The values of ``EXTRACT_FIELDS`` for one video; a failure is a row with its reason, never an exception."""
        start = time.perf_counter()
        row: dict[str, Any] = {field.name: None for field in EXTRACT_FIELDS}
        try:
            sampled, stat = self._sandbox.decode(uri, self._config.frame_policy, self._config.limits, etag=etag)
            if sampled.frames and all(frame.damaged for frame in sampled.frames):
                raise Corrupt(f"{uri}: all {len(sampled.frames)} wanted frames are damaged")
        except TypedError as error:
            row |= {"reason": error.reason, "retryable": error.retryable, "message": str(error)[:500]}
        else:
            crops = extract_faces(sampled.frames, self._config.face_policy, self._detector)
            row |= {
                "read_etag": stat.etag,
                "read_bytes": stat.size_bytes,
                "num_frames": len(sampled.frames),
                "num_faces": len(crops.crops),
                "dropped": list(crops.dropped.items()),
                "crops": crops.crops.tobytes(),
                "faces": face_rows(crops),
            }
        row["extract_s"] = time.perf_counter() - start
        return row


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
            values = extractor.extract(one["uri"][0].as_py(), one["etag"][0].as_py())
            for field in EXTRACT_FIELDS:
                one = one.append_column(field, pa.array([values[field.name]], type=field.type))
            yield one

    return extract


def policy_digest(frame_policy: FramePolicy, face_policy: FacePolicy) -> str:
    """16 hex digits that name a frame and a face policy: the part of a score row's key that decides the crops."""
    canonical = json.dumps([frame_policy.model_dump(mode="json"), face_policy.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
