"""Answers and requests of the API, as its OpenAPI document describes them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Value = bool | int | float | str | list[float] | None


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Answer):
    """Which scorer answered."""

    task: str = Field(description="what it answers")
    role: Literal["champion", "challenger"] = Field(description="its alias in the registry when it was taken into use")
    version: str = Field(description="its version in the registry")
    digest: str = Field(description="SHA-256 that names its weights and its manifest")


class Quality(_Answer):
    """How well a face can be seen."""

    confidence: float = Field(description="of the detector, 0 to 1")
    size_px: float = Field(description="short side of the box, pixels of the frame that was looked at")
    sharpness: float = Field(description="variance of the Laplacian of the face at 96 pixels")
    brightness: float = Field(description="mean luma, 0 to 1")
    yaw_deg: float | None = Field(description="turn of the head, degrees; null without landmarks")
    roll_deg: float | None = Field(description="tilt of the head, degrees; null without landmarks")


class Face(_Answer):
    """One face in one frame."""

    frame_index: int = Field(description="number of the frame in the video, from 0")
    pts_s: float | None = Field(description="time of the frame, seconds; null where the container gives none")
    box: list[float] = Field(description="left, top, right, bottom; pixels of the upright source")
    landmarks: list[list[float]] | None = Field(
        description="eyes, nose, corners of the mouth: x, y, left to right as seen; pixels of the upright source"
    )
    faces_in_frame: int = Field(description="faces in the frame that are large enough, this one included")
    quality: Quality
    values: dict[str, Value] = Field(description="what the scorer says of this face: the task's output columns")


class Abstention(_Answer):
    """Why there is no answer."""

    reason: Literal["no_face", "low_quality", "several_people"] = Field(description="for programs")
    detail: str = Field(description="for people")


class TaskAnswer(_Answer):
    """What one scorer says."""

    model: Model
    abstention: Abstention | None = Field(description="why `values` is null; null where it is not")
    values: dict[str, Value] | None = Field(
        description="the whole picture's or video's: the task's output columns, of the mean of its faces' probabilities"
    )
    num_frames: int = Field(description="frames that were looked at")
    num_faces: int = Field(description="faces that were scored")
    dropped_frames: dict[str, int] = Field(description="frames without a usable face, by cause")
    faces: list[Face]


class Timing(_Answer):
    """Milliseconds of this request."""

    queue_ms: float = Field(description="in the queue")
    faces_ms: float = Field(description="decoding, detecting and cutting, the wait for it included")
    predict_ms: float = Field(description="in the networks, the wait for a batch included")
    total_ms: float = Field(description="of all these, from the moment that the body was there")


class ScoreAnswer(_Answer):
    """The answer to a picture or a video."""

    request_id: str
    kind: Literal["image", "video"]
    width: int = Field(description="of the upright source, pixels")
    height: int = Field(description="of the upright source, pixels")
    duration_s: float | None = Field(description="seconds; null of an image")
    codec: str = Field(description="FFmpeg's name")
    tasks: dict[str, TaskAnswer] = Field(description="by task")
    timing: Timing


class ModelInfo(_Answer):
    """A scorer in use."""

    task: str
    role: str
    version: str
    digest: str
    description: str
    backbone: str
    crop_size: int = Field(description="side of the crops that it takes, pixels")
    metrics: dict[str, float] = Field(description="on its validation split")


class ServiceInfo(_Answer):
    """What the service answers, and within which limits."""

    models: list[ModelInfo]
    refused: dict[str, str] = Field(description="versions that an alias names and that failed their checks: why")
    limits: dict[str, float | int | list[str]]
    batches: bool = Field(description="whether batches can be started")


class BatchVideo(_Request):
    """One video of a list."""

    video_id: str = Field(min_length=1, max_length=512)
    uri: str = Field(min_length=1, max_length=2048)
    creator_id: str | None = Field(None, max_length=512)


class BatchRequest(_Request):
    """What a batch scores: a catalog, or a list of videos."""

    catalog: Annotated[str, Field(min_length=1, max_length=2048)] | None = Field(
        None, description="uri of a catalog (Parquet, CSV, JSONL) or of a prefix of videos, in an allowed bucket"
    )
    videos: list[BatchVideo] | None = Field(None, min_length=1, description="the videos themselves")
    tasks: list[str] | None = Field(None, min_length=1, max_length=16, description="default: all with a champion")
    limit: int | None = Field(None, ge=1, description="score at most so many of them")


class BatchCounts(_Answer):
    """How far a batch is."""

    due: int = Field(description="videos that the run took on")
    done: int = Field(description="of which have ended, one way or another")
    scored: int
    no_face: int
    quarantined: int


class Batch(_Answer):
    """A batch, as it stands."""

    id: str
    state: Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]
    message: str = Field(description="why it failed or was stopped")
    created_at: datetime
    catalog: str
    tables: str = Field(description="where the score and quarantine tables are")
    tasks: list[str]
    counts: BatchCounts | None = Field(description="null before the run has begun")
    links: dict[str, str]


class Stopped(_Answer):
    """The answer to a stop."""

    id: str
    state: str


class ProblemAnswer(_Answer):
    """Every error."""

    type: str
    title: str
    status: int
    code: str = Field(description="stable name of the cause, for programs")
    detail: str = Field(description="for people: the value, the rule, the way out")
    request_id: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemAnswer, "content": {"application/problem+json": {}}, "description": text}
    for status, text in {
        400: "The request cannot be read.",
        401: "No API key, or an unknown one.",
        403: "Not allowed.",
        404: "There is no such thing.",
        405: "Not with this method.",
        408: "The body came too slowly.",
        409: "It changed while it was read.",
        413: "Too large: bytes, pixels or seconds.",
        415: "Not a picture or video that is read here.",
        422: "The request or the file is not valid.",
        431: "The headers are too large.",
        429: "Too many requests: wait for Retry-After.",
        503: "Not ready, or too busy: wait for Retry-After.",
        504: "It took too long.",
    }.items()
}
