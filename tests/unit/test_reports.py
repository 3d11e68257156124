"""The report: its figures are the tables', it shows hostile text as text, and it needs nothing but itself."""

import base64
import io
import random
import re
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import models.tasks
from infra.errors import UserError
from infra.settings import Settings, load_settings
from infra.storage import Storage
from infra.tables import DeltaStore
from models.faces.policy import FacePolicy
from models.tasks.base import get_task
from models.video.sampling import FramePolicy
from ray_jobs.__main__ import main
from ray_jobs.reports import plots, scores
from ray_jobs.reports.facts import Bin
from ray_jobs.reports.samples import Sample, take_picture
from ray_jobs.reports.scores import Section, build_report, current_scorers
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.stages.extract import ExtractConfig, policy_digest
from ray_jobs.stages.predict import ShippedScorer
from tests.unit.scorers import small_scorer

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
RUN = "20260301T120000-abcdef"
NEWEST_SCORER = "b" * 64
COMMON = pa.schema(
    [
        *[(name, pa.string()) for name in ("video_id", "uri", "etag")],
        ("size_bytes", pa.int64()),
        *[(name, pa.string()) for name in ("policy", "scorer", "scorer_version", "status")],
        ("num_frames", pa.int32()),
        ("num_faces", pa.int32()),
        ("dropped", pa.map_(pa.string(), pa.int32())),
        ("extract_s", pa.float32()),
        ("run_id", pa.string()),
        ("committed_at", pa.timestamp("us", tz="UTC")),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("video_id", "uri", "etag", "policy", "reason")],
        ("retryable", pa.bool_()),
        ("message", pa.string()),
        ("extract_s", pa.float32()),
        ("run_id", pa.string()),
        ("committed_at", pa.timestamp("us", tz="UTC")),
    ]
)


def score_row(video_id: str, *, after_s: float = 10, num_faces: int = 8, **values: Any) -> dict[str, Any]:
    """A row of a score table; ``values`` are the task's columns, or replace common ones."""
    return {
        "video_id": video_id,
        "uri": f"/videos/{video_id}.mp4",
        "etag": "e1",
        "size_bytes": 2_000_000,
        "policy": "p1",
        "scorer": NEWEST_SCORER,
        "scorer_version": "models:/facereel-x/2",
        "status": "scored" if num_faces else "no_face",
        "num_frames": 10,
        "num_faces": num_faces,
        "dropped": [("no_face", 10 - num_faces)] if num_faces < 10 else [],
        "extract_s": 0.5,
        "run_id": RUN,
        "committed_at": START + timedelta(seconds=after_s),
    } | values


def quarantine_row(video_id: str, reason: str, *, after_s: float = 10, **values: Any) -> dict[str, Any]:
    return {
        "video_id": video_id,
        "uri": f"/videos/{video_id}.mp4",
        "policy": "p1",
        "reason": reason,
        "retryable": reason == "timeout",
        "message": f"{video_id}: it broke",
        "extract_s": 0.1,
        "run_id": RUN,
        "committed_at": START + timedelta(seconds=after_s),
    } | values


class Tables:
    """Score and quarantine tables in a folder, filled row by row."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._store = DeltaStore(self.root, Storage())
        self._sequence = 0

    def add(self, task: str, *rows: dict[str, Any]) -> None:
        outputs = get_task(task).output_schema()
        self._append(score_table(task), pa.schema([*COMMON, *outputs]), rows)

    def quarantine(self, *rows: dict[str, Any]) -> None:
        self._append(QUARANTINE, QUARANTINE_SCHEMA, rows)

    def _append(self, name: str, schema: pa.Schema, rows: tuple[dict[str, Any], ...]) -> None:
        self._sequence += 1
        table = pa.Table.from_pylist(list(rows), schema=schema)
        self._store.append(name, table, run_id="test", sequence=self._sequence)


class Page(HTMLParser):
    """What the tests look up in the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.figures: dict[str, int] = {}
        self.tables: dict[str, list[list[str]]] = {}  # data-attribute or data-numbers -> rows of cells
        self.lines: dict[str, list[str]] = {}  # data-reason, data-cause or data-run -> cells
        self.styles = 0
        self._figure: str | None = None
        self._table: list[list[str]] | None = None
        self._row: list[str] = []
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        self._figure = values.get("data-figure", self._figure)
        if tag == "table":
            name = values.get("data-attribute") or values.get("data-numbers") or ""
            self._table = self.tables.setdefault(name, [])
        if tag == "tr":
            self._row = []
            assert self._table is not None
            self._table.append(self._row)
            name = values.get("data-reason") or values.get("data-cause") or values.get("data-run")
            if name:
                self.lines[name] = self._row
        if tag in ("td", "th"):
            self._in_cell = True
            self._row.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._figure is not None:
            self.figures[self._figure] = int(data.replace(",", ""))
            self._figure = None
        if self._in_cell:
            self._row[-1] = " ".join([self._row[-1], *data.split()]).strip()


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path / "tables")


@pytest.fixture
def settings() -> Settings:
    return load_settings()


def attractiveness(score: float, std: float = 3.0, half_width: float | None = 5.0) -> dict[str, Any]:
    return {
        "score": score,
        "score_low": None if half_width is None else score - half_width,
        "score_high": None if half_width is None else score + half_width,
        "score_median": round(score),
        "score_std": std,
        "score_argmax": round(score),
        "score_distribution": [0.025] * 40,
    }


def fs2k(rng: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for head in get_task("fs2k").heads:
        chosen = rng.choice(head.classes)
        p = rng.uniform(0.5, 1)
        values[head.name] = chosen
        values[f"{head.name}_p"] = 1 - p if chosen is False else p
    return values


def fill(tables: Tables, num: int, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """A run over ``num`` videos in commits of 20, with both tasks, no_face and quarantine; returns its rows."""
    rng = random.Random(seed)
    rows: dict[str, list[dict[str, Any]]] = {"attractiveness": [], "fs2k": [], "quarantine": []}
    for start in range(0, num, 20):
        commit: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
        for index in range(start, min(start + 20, num)):
            common = {"extract_s": rng.lognormvariate(-0.7, 0.5), "after_s": 5 + start * 0.6}
            fate, video_id = rng.random(), f"video-{index:05}"
            if fate < 0.06:
                reason = rng.choice(["truncated", "not_media", "not_media", "timeout"])
                commit["quarantine"].append(quarantine_row(video_id, reason, **common))
                continue
            num_faces = rng.randint(1, 10) if fate > 0.14 else 0
            score = min(max(rng.gauss(77, 6), 60), 99)
            for task, values in (("attractiveness", attractiveness(score, rng.uniform(2, 4))), ("fs2k", fs2k(rng))):
                row = score_row(video_id, num_faces=num_faces, **common, **(values if num_faces else {}))
                commit[task].append(row)
        for task in ("attractiveness", "fs2k"):
            tables.add(task, *commit[task])
        if commit["quarantine"]:
            tables.quarantine(*commit["quarantine"])
        for name, added in commit.items():
            rows[name] += added
    return rows


def test_the_figures_are_those_of_the_tables(tables: Tables, settings: Settings) -> None:
    rows = fill(tables, 120)
    page = Page(build_report(tables.root, settings))
    scored = [row for row in rows["fs2k"] if row["status"] == "scored"]
    no_face = [row for row in rows["fs2k"] if row["status"] == "no_face"]
    quarantined = rows["quarantine"]
    assert scored
    assert no_face
    assert quarantined
    assert page.figures == {
        "videos": 120,
        "scored": len(scored),
        "no_face": len(no_face),
        "quarantined": len(quarantined),
    }

    by_score = {int(cells[0]): int(cells[1]) for cells in page.tables["score"][1:]}
    values = [row["score"] for row in rows["attractiveness"] if row["status"] == "scored"]
    points, counts = np.unique(np.floor(np.float32(values) + 0.5).astype(int), return_counts=True)
    assert by_score == dict(zip(points.tolist(), counts.tolist(), strict=True))

    for head in get_task("fs2k").heads:
        answers = [str(row[head.name]) for row in scored]
        shown = {cells[0]: int(cells[2]) for cells in page.tables[head.name][1:]}
        words = {"True": "yes", "False": "no"}
        assert shown == {words.get(str(c), str(c)): answers.count(str(c)) for c in head.classes}

    for reason in {row["reason"] for row in quarantined}:
        assert int(page.lines[reason][1]) == sum(row["reason"] == reason for row in quarantined)
    frames = page.lines["no_face"]
    assert [int(cell) for cell in frames[1:]] == [
        len(no_face),
        10 * len(no_face),
        sum(10 - row["num_faces"] for row in scored),
    ]


def test_the_rates_of_a_run_are_over_its_time_from_the_start(tables: Tables, settings: Settings) -> None:
    tables.add("attractiveness", *[score_row(str(i), after_s=20, num_faces=5, **attractiveness(80)) for i in range(40)])
    tables.add("fs2k", *[score_row(str(i), after_s=20, num_faces=5) for i in range(40)])
    run, videos, faces, mb, seconds, *rates, extract_s, _ = Page(build_report(tables.root, settings)).lines[RUN]
    assert run == RUN
    # A video scored for two tasks was decoded once.
    assert (videos, faces, mb, seconds, extract_s) == ("40", "200", "80.0", "20.0", "20.0")
    assert rates == ["2.00", "10.00", "4.00"]


def test_a_run_id_without_a_time_gives_no_rates(tables: Tables, settings: Settings) -> None:
    tables.add("attractiveness", score_row("a", run_id="nightly", **attractiveness(80)))
    assert Page(build_report(tables.root, settings)).lines["nightly"][4:8] == ["–"] * 4


def test_the_newest_row_of_the_newest_scorer_counts(tables: Tables, settings: Settings) -> None:
    old = {"scorer": "a" * 64, "scorer_version": "models:/facereel-x/1"}
    tables.add(
        "attractiveness",
        score_row("a", after_s=1, **old, **attractiveness(61)),
        score_row("only-old", after_s=1, **old, **attractiveness(62)),
        score_row("a", after_s=2, **attractiveness(70)),
        score_row("a", after_s=3, etag="e2", **attractiveness(90)),
    )
    page = Page(build_report(tables.root, settings))
    assert page.figures["videos"] == page.figures["scored"] == 1
    assert [cells[:2] for cells in page.tables["score"][1:]] == [["90", "1"]]
    assert "1 more video scored by earlier scorers only" in page.html
    (scorer,) = current_scorers(tables.root, settings)
    assert (scorer.digest, scorer.version, scorer.num_outdated) == (NEWEST_SCORER, "models:/facereel-x/2", 1)
    assert NEWEST_SCORER[:12] in page.html
    assert NEWEST_SCORER[:13] not in page.html


def test_a_video_counts_as_what_became_of_it_last(tables: Tables, settings: Settings) -> None:
    tables.quarantine(quarantine_row("mended", "timeout", after_s=1), quarantine_row("broken", "corrupt", after_s=9))
    tables.quarantine(quarantine_row("twice", "timeout", after_s=1), quarantine_row("twice", "too_long", after_s=2))
    tables.add(
        "attractiveness",
        score_row("mended", after_s=5, **attractiveness(80)),
        score_row("broken", after_s=5, **attractiveness(81)),
    )
    page = Page(build_report(tables.root, settings))
    assert page.figures == {"videos": 3, "scored": 1, "no_face": 0, "quarantined": 2}
    assert {"corrupt", "too_long"} <= set(page.lines)
    assert "timeout" not in page.lines


def test_all_quarantined_is_still_a_report(tables: Tables, settings: Settings) -> None:
    tables.quarantine(quarantine_row("a", "not_media"))
    page = Page(build_report(tables.root, settings))
    assert page.figures == {"videos": 1, "scored": 0, "no_face": 0, "quarantined": 1}


def test_no_faces_at_all_is_still_a_report(tables: Tables, settings: Settings) -> None:
    tables.add("fs2k", score_row("a", num_faces=0))
    assert Page(build_report(tables.root, settings)).figures["no_face"] == 1


def test_only_the_named_tasks_are_reported(tables: Tables, settings: Settings) -> None:
    fill(tables, 20)
    page = Page(build_report(tables.root, settings, tasks=["fs2k"]))
    assert "score" not in page.tables
    assert "smile" in page.tables


def test_no_tables_are_refused(tables: Tables, settings: Settings) -> None:
    with pytest.raises(UserError, match="no tables there"):
        build_report(tables.root, settings)


def test_a_task_without_a_table_is_refused(tables: Tables, settings: Settings) -> None:
    tables.add("fs2k", score_row("a"))
    with pytest.raises(UserError, match="no table scores_attractiveness there"):
        build_report(tables.root, settings, tasks=["attractiveness"])
    with pytest.raises(UserError, match="no task 'beauty'"):
        build_report(tables.root, settings, tasks=["beauty"])


def test_tables_without_rows_are_refused(tables: Tables, settings: Settings) -> None:
    tables.add("fs2k")
    with pytest.raises(UserError, match="have no rows"):
        build_report(tables.root, settings)


def test_hostile_text_is_shown_as_text(tables: Tables, settings: Settings) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    tables.add("attractiveness", score_row(evil, **attractiveness(80)))
    tables.quarantine(quarantine_row(evil + "2", evil, message=evil))
    html = build_report(tables.root, settings, sections=[Section(evil, evil, (evil,), ((evil,),))], title=evil)
    page = Page(html)
    assert "&lt;script&gt;alert(1)" in html
    assert {"script", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert evil in page.lines


def test_the_page_needs_nothing_but_itself(tables: Tables, settings: Settings) -> None:
    fill(tables, 60)
    page = Page(build_report(tables.root, settings))
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "link" not in {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import|https?://", page.html)
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= targets


def test_sections_of_the_caller_are_shown(tables: Tables, settings: Settings) -> None:
    fill(tables, 20)
    section = Section("Held-out people", "Scorer beside baseline.", ("metric", "scorer"), (("mae", 2.5), ("n", 1200)))
    page = Page(build_report(tables.root, settings, sections=[section]))
    assert "Held-out people" in page.html
    rows = page.tables[""]
    assert ["mae", "2.50"] in rows
    assert ["n", "1,200"] in rows


def test_samples_are_the_same_each_time_and_spread_over_the_scores(tables: Tables, settings: Settings) -> None:
    rows = fill(tables, 200)["attractiveness"]

    def shown(html: str) -> list[str]:
        return re.findall(r'class="id"><code>([^<]+)<', html)

    first = shown(build_report(tables.root, settings, num_samples=12))
    assert first == shown(build_report(tables.root, settings, num_samples=12))
    assert len(set(first)) == 12
    by_id = {row["video_id"]: row["score"] for row in rows if row["status"] == "scored"}
    sampled, everybody = [by_id[video_id] for video_id in first], list(by_id.values())
    assert sampled == sorted(sampled)
    width = (max(everybody) - min(everybody)) / 12
    assert sampled[0] < min(everybody) + width
    assert sampled[-1] > max(everybody) - width


class FakeExtractor:
    """Two faces a video, the second one sharper; videos named ``gone`` cannot be read."""

    def __init__(self, config: ExtractConfig) -> None:
        self._size = config.face_policy.crop_size

    def extract(self, uri: str, etag: str | None) -> dict[str, Any]:
        if "gone" in uri:
            return {"reason": "not_found"}
        crops = np.zeros((2, self._size, self._size, 3), np.uint8)
        crops[1] = 200
        faces = [{"sharpness": 10.0}, {"sharpness": 90.0}]
        return {"reason": None, "num_faces": 2, "crops": crops.tobytes(), "faces": faces}


def extract_config(settings: Settings) -> ExtractConfig:
    return ExtractConfig(frame_policy=FramePolicy(), face_policy=FacePolicy(crop_size=64), storage=settings.storage)


def test_pictures_stand_in_the_page_and_a_lost_video_says_so(
    tables: Tables, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "Extractor", FakeExtractor)
    tables.add("attractiveness", score_row("a", **attractiveness(70)), score_row("gone", **attractiveness(80)))
    page = Page(build_report(tables.root, settings, extract=extract_config(settings)))
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["src"].startswith("data:image/jpeg;base64,")
    assert image["alt"] == "A face from video a"
    assert "cannot be shown: not_found" in page.html


def test_the_picture_is_the_sharpest_face(settings: Settings) -> None:
    config = extract_config(settings)
    picture = take_picture(Sample("a", "/a.mp4", None, (), ()), FakeExtractor(config), 64)
    assert picture.address is not None
    data = base64.b64decode(picture.address.partition(",")[2])
    assert abs(np.asarray(Image.open(io.BytesIO(data))).mean() - 200) < 2


@pytest.mark.parametrize("task", ["attractiveness", "fs2k"])
def test_a_manifest_adds_metrics_beside_the_baseline(
    tables: Tables, settings: Settings, tmp_path: Path, task: str
) -> None:
    fill(tables, 20)
    manifest = small_scorer(tmp_path / "scorer", task).manifest
    manifest = manifest.model_copy(
        update={
            "metrics": {"accuracy_smile": 0.875, get_task(task).best_metric: 0.5, "f1_macro_smile": 0.625},
            "baseline_metrics": {get_task(task).best_metric: 0.25, "f1_macro_smile": 0.125},
        }
    )
    html = build_report(tables.root, settings, tasks=[task], manifests={NEWEST_SCORER: manifest})
    metrics = Page(html).tables[""]
    assert [get_task(task).best_metric.replace("_", " "), "0.500", "0.250"] in metrics
    if task == "fs2k":
        assert "f1 macro 0.62, baseline 0.12" in html
        assert not any("smile" in row[0] for row in metrics if row)


TOY = """
from models.tasks.base import Head
from models.tasks.classification import ClassificationTask


class Toy(ClassificationTask):
    name = "toy"
    description = "A toy."
    limits = ("A toy.",)
    heads = (Head(name="order", classes=("red", "green", "blue")),)


TASK = Toy()
"""


def test_a_third_task_has_its_section(
    tables: Tables, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.py").write_text(TOY)
    monkeypatch.setattr(models.tasks, "__path__", [*models.tasks.__path__, str(tmp_path / "tasks")])
    try:
        tables.add("toy", *[score_row(str(i), order="red" if i else "blue", order_p=0.5) for i in range(4)])
        page = Page(build_report(tables.root, settings))
    finally:
        sys.modules.pop("models.tasks.toy", None)
        del models.tasks.toy  # type: ignore[attr-defined]
    assert page.tables["order"][1:] == [
        ["red", "", "3", "50%"],
        ["green", "", "0", "–"],
        ["blue", "", "1", "50%"],
    ]


def test_the_verb_writes_a_page_with_what_the_scorer_says_of_itself(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = small_scorer(tmp_path / "scorer", "fs2k")
    manifest = scorer.manifest
    ShippedScorer.ship(tmp_path / "scorer", "fs2k", scorer.digest, tables.root, Storage())
    tables.add(
        "fs2k",
        score_row(
            "a",
            scorer=scorer.digest,
            scorer_version=str(tmp_path / "scorer"),
            policy=policy_digest(manifest.frame_policy, manifest.face_policy),
            smile=True,
        ),
    )
    tables.add("attractiveness", score_row("a", scorer_version=str(tmp_path / "removed"), **attractiveness(80)))
    monkeypatch.setattr(scores, "Extractor", FakeExtractor)
    monkeypatch.setenv("FACEREEL_TRACKING__URI", f"sqlite:///{tmp_path}/mlflow.db")
    out = tmp_path / "report.html"
    run_verb(monkeypatch, "report", "--tables", tables.root, "--out", str(out))
    html = out.read_text()
    assert ["f1 macro mean", "0.500", "0.250"] in Page(html).tables[""]
    assert "data:image/jpeg;base64," in html
    printed = capsys.readouterr().out
    assert "no metrics of attractiveness" in printed
    assert f"wrote {out}" in printed


def test_the_verb_refuses_a_folder_without_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_verb(monkeypatch, "report", "--tables", str(tmp_path), "--out", str(tmp_path / "report.html"))
    assert end.value.code == 2
    assert f"error: {tmp_path}: no tables there" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def run_verb(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ray_jobs", *arguments])
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


def test_a_histogram_fills_the_plot_up_to_a_round_number() -> None:
    bins = [Bin(59.5, 1, 3), Bin(60.5, 1, 17), Bin(61.5, 1, 0)]
    plot = plots.count_bars(bins, title="Videos", x_label="score", alt="")
    assert [bar.title for bar in plot.bars] == ["60: 3 videos", "61: 17 videos", "62: 0 videos"]
    assert [tick.label for tick in plot.y_ticks] == ["0", "5", "10", "15", "20"]
    assert plot.bars[1].height == pytest.approx(17 / 20)
    assert plot.bars[-1].left + plot.bars[-1].width == pytest.approx(1)
    assert all(0 <= tick.at <= 1 for tick in [*plot.x_ticks, *plot.y_ticks])


def test_steps_end_at_the_total() -> None:
    plot = plots.steps([(1.0, 10), (2.0, 20), (4.0, 40)], title="", x_label="", alt="")
    assert plot.line[0] == (0, 0)
    assert plot.line[-1] == (1, 1)
    assert plot.y_ticks[-1].label == "40"


def test_a_curve_is_drawn_over_the_range_of_its_values():
    plot = plots.curve([0.4, 0.9, 0.6], title="", x_label="epoch", alt="", marks=[(2, "kept")])
    heights = [y for _, y in plot.line]
    assert [x for x, _ in plot.line] == [0, 0.5, 1]
    assert heights.index(max(heights)) == 1
    assert 0 <= min(heights) < 0.3
    assert max(heights) <= 1
    assert [(mark.at, mark.label) for mark in plot.marks] == [(0.5, "kept")]
    ((x, y),) = plots.curve([0.5], title="", x_label="", alt="").line
    assert x == 0
    assert 0 <= y <= 1
