"""The running account of a scoring run."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """What is committed: each video of the plan ends in exactly one of ``scored``, ``no_face`` and ``quarantined``."""

    scored: int = 0
    no_face: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    num_faces: int = 0
    fetched_bytes: int = 0
    extract_s: float = 0.0
    predict_s: float = 0.0
    num_commits: int = 0

    @property
    def done(self) -> int:
        """Videos accounted for."""
        return self.scored + self.no_face + self.quarantined.total()
