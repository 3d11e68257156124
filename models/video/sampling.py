"""Which frames of a video are looked at: pure arithmetic over frame numbers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class FramePolicy(BaseModel):
    """Which frames of a video are looked at, and at what size.

    Frame ``k`` is the k-th picture (from 0) that a full decode yields, in presentation order::

        every=50, limit=10:   0 .... 50 .... 100 ....  ....  450      (a shorter video gives fewer)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(50, ge=1, description="distance between wanted frames, frames")
    limit: int = Field(10, ge=1, le=100_000, description="most frames taken from a video")
    indices: tuple[int, ...] | None = Field(
        None, min_length=1, description="explicit frame numbers; given, every and limit are not used"
    )
    mode: Literal["exact", "keyframe"] = Field(
        "exact",
        description="exact: the wanted frames; keyframe: the nearest keyframes, cheaper, with their shift reported",
    )
    short_side: int = Field(
        360, ge=16, le=4096, description="shorter side of the frames, pixels; smaller videos are not enlarged"
    )

    @field_validator("indices")
    @classmethod
    def _distinct(cls, indices: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if indices is None:
            return None
        if min(indices) < 0:
            raise ValueError(f"frame number {min(indices)} is negative; frames are counted from 0")
        if len(set(indices)) != len(indices):
            raise ValueError("a frame number stands twice in indices; give each once")
        return tuple(sorted(indices))

    def wanted(self) -> tuple[int, ...]:
        """The wanted frame numbers, strictly increasing; those beyond a video's end are simply absent."""
        if self.indices is not None:
            return self.indices
        return tuple(range(0, self.every * self.limit, self.every))


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) of a picture scaled so that its shorter side is ``short_side``, never enlarged."""
    shorter = min(width, height)
    if shorter <= short_side:
        return width, height
    return max(1, round(width * short_side / shorter)), max(1, round(height * short_side / shorter))
