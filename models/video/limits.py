"""What one video may cost: hard limits, each with a typed refusal."""

import time
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from models.video.errors import DecodeTimeout


class DecodeLimits(BaseModel):
    """Limits on one video; beyond them it is refused with a reason instead of decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_file_bytes: int = Field(16 << 30, gt=0, description="largest file, bytes (refused: too_large)")
    max_pixels: int = Field(
        8192 * 4352, gt=0, description="most pixels in a picture, width × height (refused: too_many_pixels)"
    )
    max_duration_s: float = Field(6 * 3600, gt=0, description="longest video, seconds (refused: too_long)")
    max_cpu_s: float = Field(120, gt=0, description="CPU seconds that decoding may use (refused: timeout)")
    max_wall_s: float = Field(
        300, gt=0, description="seconds from request to frames, reading included, in a sandbox (refused: timeout)"
    )
    max_memory_bytes: int = Field(
        3 << 30, ge=1 << 29, description="address space of a sandbox's process, bytes (refused: out_of_memory)"
    )


class CpuClock:
    """The CPU seconds that the calling thread has spent on a video so far."""

    def __init__(self, max_cpu_s: float, name: str) -> None:
        self._max_cpu_s = max_cpu_s
        self._name = name
        self._start_s = time.thread_time()

    def check(self) -> Self:
        """Raise `DecodeTimeout` once the limit is passed; to be called at every packet."""
        if time.thread_time() - self._start_s > self._max_cpu_s:
            raise DecodeTimeout(f"{self._name}: decoding took more than max_cpu_s={self._max_cpu_s:g} CPU seconds")
        return self
