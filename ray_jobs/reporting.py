"""Write the report on score tables, with the manifests of the scorers that made them."""

from collections.abc import Sequence

from infra.settings import Settings
from infra.storage import ObjectNotFound, Storage, join
from models.scorer import MANIFEST_FILE, ScorerManifest
from ray_jobs.console import console
from ray_jobs.reports.scores import Section, build_report, current_scorers
from ray_jobs.score_table import scorer_uri
from ray_jobs.stages.extract import ExtractConfig


def write_report(
    tables: str,
    out: str,
    settings: Settings,
    *,
    tasks: Sequence[str] | None = None,
    num_samples: int = 24,
    with_pictures: bool = True,
    sections: Sequence[Section] = (),
    title: str = "Score report",
) -> None:
    """Build the report and write it to ``out``.

    Raises:
        UserError: There is nothing to report.
    """
    storage = Storage(settings.storage)
    manifests = _manifests(tables, settings, tasks)
    newest = next(iter(manifests.values()), None)
    extract = None
    if newest is not None and with_pictures:
        extract = ExtractConfig(
            frame_policy=newest.frame_policy, face_policy=newest.face_policy, storage=settings.storage
        )
    html = build_report(
        tables,
        settings,
        tasks=tasks,
        manifests=manifests,
        extract=extract,
        num_samples=num_samples,
        sections=sections,
        title=title,
    )
    stat = storage.put(out, html.encode())
    console.print(f"wrote {out} ({stat.size_bytes / 1e6:.1f} MB)", highlight=False)


def _manifests(tables: str, settings: Settings, tasks: Sequence[str] | None) -> dict[str, ScorerManifest]:
    """Digest -> manifest of the scorers whose copies still lie beside the tables; the others cost their metrics."""
    storage = Storage(settings.storage)
    manifests = {}
    for row in current_scorers(tables, settings, tasks):
        try:
            data = storage.read_all(join(scorer_uri(tables, row.digest), MANIFEST_FILE))
        except ObjectNotFound as error:
            console.print(f"no metrics of {row.task}: {error}", highlight=False)
            continue
        manifests[row.digest] = ScorerManifest.model_validate_json(data)
    return manifests
