"""The page of a label review: doubtful labels with their pictures, verdicts by click, and the table to take away."""

from collections.abc import Sequence
from dataclasses import dataclass

from ray_jobs.crops.dataset import DatasetManifest
from ray_jobs.labels.verdicts import COLUMNS, RIGHT, WRONG
from ray_jobs.reports.page import crop_address, environment

PICTURE_PX = 112


@dataclass(frozen=True, slots=True)
class Doubtful:
    """One label of one video that the others contradict."""

    video_id: str
    source: str
    given: str
    suggested: str
    doubt: float
    pictures: list[bytes]  # encoded crops

    @property
    def addresses(self) -> list[str]:
        """The pictures as addresses of small JPEGs."""
        return [crop_address(picture, PICTURE_PX) for picture in self.pictures]


@dataclass(frozen=True, slots=True)
class LabelReview:
    """What a review found on one label."""

    label: str
    num_items: int
    num_doubted: int
    agreement: float | None  # None: it could not be reviewed, `problem` says why
    trivial_agreement: float | None
    doubtful: list[Doubtful]  # the most doubtful first
    problem: str


def review_page(manifest: DatasetManifest, dataset: str, reviews: Sequence[LabelReview]) -> str:
    """The page as HTML, in one file."""
    return (
        environment()
        .get_template("review.html.j2")
        .render(manifest=manifest, dataset=dataset, reviews=reviews, columns=COLUMNS, verdicts=(RIGHT, WRONG))
    )
