"""When a run goes wrong early: everything fails alike, or too much fails."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field


class FailureLimits(BaseModel):
    """How much may fail before a run is stopped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_rate: float = Field(0.5, ge=0, le=1, description="largest share of quarantined videos; 1 never stops")
    min_videos: int = Field(200, ge=1, description="videos that must have arrived before the share counts")
    first: int = Field(50, ge=0, description="stop when so many first videos all fail for one reason; 0 never stops")


@dataclass(slots=True)
class FailureGuard:
    """Counts what arrives and says when to stop."""

    limits: FailureLimits
    num_videos: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reasons: Iterable[str | None]) -> None:
        """Count videos by their reason; None stands for one that did not fail."""
        for reason in reasons:
            self.num_videos += 1
            if reason is not None:
                self.reasons[reason] += 1

    @property
    def holds_back(self) -> bool:
        """Whether commits should wait: so far all have failed alike, which says more about the run than the videos.

        Committed, they would stand in quarantine and not be due again once the run's mistake is mended.
        """
        return self._all_alike and self.num_videos < self.limits.first

    @property
    def all_failed_alike(self) -> str | None:
        """The reason for which all of the first videos failed, or None: stop, and commit nothing of it."""
        if self.limits.first and self._all_alike and self.num_videos >= self.limits.first:
            return next(iter(self.reasons))
        return None

    @property
    def is_over(self) -> bool:
        """Whether the share of failed videos is beyond the limit."""
        return (
            self.num_videos >= self.limits.min_videos and self.reasons.total() > self.limits.max_rate * self.num_videos
        )

    @property
    def _all_alike(self) -> bool:
        return len(self.reasons) == 1 and self.reasons.total() == self.num_videos
