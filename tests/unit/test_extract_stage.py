"""Extraction of one video: what may pass is tried again, what cannot is said at once, and the content is held to."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from infra.errors import TypedError
from infra.settings import StorageSettings
from infra.storage import ObjectChanged, ObjectNotFound, StorageTimeout
from models.faces.policy import FacePolicy
from models.video.errors import DecoderCrashed, OutOfMemory, Truncated
from models.video.sampling import FramePolicy
from ray_jobs.stages.extract import ExtractConfig, Extractor
from tests.unit.video_corpus import file_of

CONFIG = ExtractConfig(
    frame_policy=FramePolicy(every=20, limit=2),
    face_policy=FacePolicy(crop_size=48),
    storage=StorageSettings(),
    retry_wait_s=0,
)


@pytest.fixture(scope="module")
def extractors() -> dict[bool, Extractor]:
    return {flag: Extractor(CONFIG.model_copy(update={"with_digest": flag})) for flag in (False, True)}


@pytest.fixture
def video(tmp_path: Path) -> str:
    path = tmp_path / "video.mp4"
    path.write_bytes(file_of("h264_b"))
    return str(path)


def failing(extractor: Extractor, monkeypatch: pytest.MonkeyPatch, *errors: TypedError) -> list[str]:
    """The first decodes raise these errors; returns the uris that were asked for."""
    asked: list[str] = []
    waiting = list(errors)
    decode = extractor._sandbox.decode

    def broken(uri: str, *arguments: Any, **options: Any) -> Any:
        asked.append(uri)
        if waiting:
            raise waiting.pop(0)
        return decode(uri, *arguments, **options)

    monkeypatch.setattr(extractor._sandbox, "decode", broken)
    return asked


def test_a_failure_that_passes_costs_a_try_and_nothing_else(
    extractors: dict[bool, Extractor], video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = failing(extractors[False], monkeypatch, StorageTimeout("slow"), StorageTimeout("slow"))
    row = extractors[False].extract(video, None)
    assert (row["reason"], row["retryable"], row["message"], row["num_tries"], len(asked)) == (None, None, None, 3, 3)
    assert row["read_bytes"] == len(file_of("h264_b"))
    assert 0 < row["fetched_bytes"] <= row["read_bytes"]


@pytest.mark.parametrize(
    ("error", "etag", "num_tries"),
    [
        (StorageTimeout("slow"), None, 3),
        (ObjectChanged("while it was read"), None, 3),
        (ObjectChanged("since the plan"), "planned", 1),
        (ObjectNotFound("gone"), None, 1),
        (Truncated("cut"), None, 1),
        (DecoderCrashed("died"), None, 2),
        (OutOfMemory("killed"), None, 2),
    ],
)
def test_what_keeps_failing_is_quarantined_after_as_many_tries_as_it_deserves(
    extractors: dict[bool, Extractor],
    video: str,
    monkeypatch: pytest.MonkeyPatch,
    error: TypedError,
    etag: str | None,
    num_tries: int,
) -> None:
    asked = failing(extractors[False], monkeypatch, *[error] * 9)
    row = extractors[False].extract(video, etag)
    assert (row["reason"], row["retryable"], row["message"]) == (error.reason, error.retryable, str(error))
    assert row["num_tries"] == len(asked) == num_tries
    assert row["read_etag"] is None


def test_the_planned_digest_counts_instead_of_the_etag(extractors: dict[bool, Extractor], video: str) -> None:
    digest = hashlib.sha256(file_of("h264_b")).hexdigest()
    row = extractors[True].extract(video, "an etag of a copy", digest.upper())
    assert (row["reason"], row["read_sha256"]) == (None, digest)
    row = extractors[True].extract(video, None, "0" * 64)
    assert (row["reason"], row["retryable"], row["num_tries"]) == ("changed", True, 1)
    assert "its sha256 is" in row["message"]


def test_a_changed_etag_is_noticed(extractors: dict[bool, Extractor], video: str) -> None:
    row = extractors[False].extract(video, "planned")
    assert (row["reason"], row["num_tries"]) == ("changed", 1)
