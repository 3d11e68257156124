"""The page of a drift comparison."""

from typing import TYPE_CHECKING

from ray_jobs.reports.page import environment

if TYPE_CHECKING:
    from ray_jobs.drifting import Drift


def drift_page(drift: "Drift") -> str:
    """The page as HTML, in one file."""
    return environment().get_template("drift.html.j2").render(drift=drift)
