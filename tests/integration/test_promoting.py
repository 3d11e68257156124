"""A scorer becomes champion by its gates: on SQLite with all that follows, and on a server with Postgres and S3.

The short form trains in this process and scores a part of the catalog; ``make promotion`` does all on the cluster.
"""

import contextlib
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from mlflow.tracking import MlflowClient

from infra.errors import RunStopped, UserError
from infra.settings import Settings
from infra.storage import Storage
from infra.tables import DeltaStore
from infra.tracking import experiment_id, tracking_client
from models import promotion, registry
from models.exchange import export_scorer, import_scorer
from ray_jobs import promotion_story
from ray_jobs.promoting.deciding import PromoteConfig, run_promote
from ray_jobs.promoting.gates import Gates, QualityGate
from ray_jobs.promoting.record import Decision
from ray_jobs.promotion_story import GATES, TASK, Story
from ray_jobs.score_config import ScoreConfig, plan_run, resolve_scorers
from tests import postgres
from tests.mlflow_server import mlflow_server
from tests.training import training_here

pytestmark = pytest.mark.ray
NAME = registry.model_name(TASK)
NUM_IN_PART = 70  # of the catalog, in the short form
EPOCHS = (6, 10, 16)  # of versions 1, 2 and 3
# Each scorer is measured in a process of its own: the short form does so where the second version is decided about.
NO_HARDWARE = Gates(hardware=None)
GATES_BUT_HARDWARE = GATES.model_copy(update={"hardware": None})


@pytest.fixture(scope="module", params=["short", pytest.param("long", marks=pytest.mark.slow)])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Settings, form: str) -> Story:
    """Datasets and a registry of its own, with version 1 trained."""
    folder = tmp_path_factory.mktemp("story")
    tracking = ray_cluster.tracking.model_copy(update={"uri": f"sqlite:///{folder}/mlflow.db"})
    found = promotion_story.prepare_story(
        folder, ray_cluster.model_copy(update={"tracking": tracking}), num_videos=240, seed=0
    )
    assert train(found, form, 1, "labels") == "1"
    return found if form == "long" else part_of(found)


def train(story: Story, form: str, number: int, dataset: str) -> str:
    """Train a version of the story, from the champion on; its number."""
    start = "none" if number == 1 else "champion"
    with contextlib.nullcontext() if form == "long" else training_here(num_threads=2):
        return promotion_story.train_version(story, f"v{number}", dataset, epochs=EPOCHS[number - 1], start=start)


def part_of(story: Story) -> Story:
    """With a catalog of the minor and the first of the others."""
    with story.drawn.catalog.open(newline="") as file:
        header, *rows = csv.reader(file)
    is_minor = [int(row[header.index("age")]) < 18 for row in rows]
    minor = rows.pop(is_minor.index(True))
    catalog = story.drawn.catalog.with_name("part.csv")
    with catalog.open("w", newline="") as file:
        csv.writer(file).writerows([header, minor, *rows[:NUM_IN_PART]])
    return replace(story, drawn=replace(story.drawn, catalog=catalog))


def client_of(settings: Settings) -> MlflowClient:
    return tracking_client(settings.tracking)


def champion(settings: Settings) -> str | None:
    return registry.version_with(client_of(settings), TASK, "champion")


def decision_of(settings: Settings, version: str) -> Decision:
    """The newest record among the artifacts of the version's run."""
    client = client_of(settings)
    run_id = run_of(settings, version)
    folders = sorted(item.path for item in client.list_artifacts(run_id, "decisions"))
    assert f"{folders[-1]}/decision.html" in [item.path for item in client.list_artifacts(run_id, folders[-1])]
    text = registry.read_artifact(client, run_id, f"{folders[-1]}/decision.json")
    assert text is not None
    return Decision.model_validate_json(text)


def run_of(settings: Settings, version: str) -> str:
    return str(client_of(settings).get_model_version(NAME, version).run_id)


def states(story: Story) -> dict[str, int]:
    config = ScoreConfig(catalog=str(story.drawn.catalog), tables=str(story.folder / "tables"), scorers={})
    with plan_run(config, resolve_scorers({}, story.settings), story.settings) as plan:
        return {state: number for state, number in plan.counts[TASK].items() if number}


def rows_by_version(story: Story) -> dict[str, int]:
    """Each video's newest row, counted by who made it."""
    rows = DeltaStore(str(story.folder / "tables"), Storage()).dataset(f"scores_{TASK}")
    newest = duckdb.sql(
        "SELECT scorer_version, count(*) FROM (SELECT arg_max(scorer_version, committed_at) AS scorer_version "
        "FROM rows GROUP BY video_id) GROUP BY ALL"
    ).fetchall()
    assert rows is not None
    return {version.rpartition("/")[2]: number for version, number in newest}


def asked(story: Story, version: str = "1", **changes: object) -> PromoteConfig:
    config = PromoteConfig(
        task=TASK, version=version, gates=NO_HARDWARE, dataset=story.evaluation, split="all", num_resamples=20
    )
    return replace(config, **changes)


def test_what_cannot_be_decided_is_refused_with_the_reason(story: Story) -> None:
    def refusal(**changes: object) -> str:
        with pytest.raises(UserError) as refused:
            run_promote(asked(story, **changes), story.settings)
        assert champion(story.settings) is None
        return str(refused.value)

    assert f"no scorer models:/{NAME}/9" in refusal(version="9")
    assert f"no scorer models:/{NAME}@challenger" in refusal(version="challenger")
    assert "--force needs a --reason" in refusal(force=True, reason=" ")
    trained_on = refusal(dataset=str(story.folder / "labels"))
    assert f"models:/{NAME}/1 was trained on this dataset (fingerprint" in trained_on
    # The same people under other labels: another fingerprint.
    overlap = refusal(dataset=str(story.folder / "wrong"))
    assert f"of its creators or videos were in the training of models:/{NAME}/1" in overlap
    assert "has no split 'test'; it has" in refusal(split="test")
    fingerprint = Gates(quality=QualityGate(fingerprint="0" * 64))
    assert "is not the evaluation set that the gates name" in refusal(gates=fingerprint)
    client = client_of(story.settings)
    tags = client.get_model_version(NAME, "1").tags
    client.delete_model_version_tag(NAME, "1", "metric.mae")
    try:
        assert "version 1 has no metrics" in refusal()
    finally:
        client.set_model_version_tag(NAME, "1", "metric.mae", tags["metric.mae"])
    client.set_model_version_tag(NAME, "1", "digest", "0" * 64)
    try:
        assert "another scorer" in refusal()
    finally:
        client.set_model_version_tag(NAME, "1", "digest", tags["digest"])


def test_a_gate_without_a_figure_is_not_passed(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunStopped, match="quality, slices, calibration not passed") as stopped:
        run_promote(asked(story, dataset=None), story.settings)
    assert stopped.value.exit_code == 3
    assert "no --dataset to measure on" in capsys.readouterr().out
    assert champion(story.settings) is None
    assert decision_of(story.settings, "1").outcome == "refused"
    decision, change = run_promote(asked(story, dry_run=True, gates=GATES_BUT_HARDWARE), story.settings)
    assert (decision.outcome, change) == ("passed", None)
    assert champion(story.settings) is None
    with pytest.raises(RunStopped, match="quality, slices, calibration not passed"):
        run_promote(asked(story, dataset=None, dry_run=True), story.settings)


def test_the_story(story: Story, form: str) -> None:
    settings, folder = story.settings, story.folder
    gates = GATES if form == "long" else GATES_BUT_HARDWARE
    first = promotion_story.decide(story, "1", reason="the first one", out="decision-1", gates=gates)
    assert first is not None
    assert champion(settings) == "1"
    num_videos = promotion_story.score(story)
    assert states(story) == {"done": num_videos, "minor": 1}

    assert train(story, form, 2, "labels") == "2"
    second = promotion_story.decide(story, "2", reason="trained for longer", out="decision-2")
    assert second is not None
    assert all(verdict.passed for verdict in second.verdicts)
    assert {verdict.gate for verdict in second.verdicts} >= {"quality", "slices", "calibration", "hardware", "shadow"}
    assert second.shadow is not None
    assert second.shadow.num_videos == promotion_story.SAMPLE
    page = (folder / "decision-2" / "decision.html").read_text()
    assert "passed every gate" in page
    assert page.count("data:image/jpeg") == len(second.shadow.movers) > 0
    assert json.loads((folder / "decision-2" / "decision.json").read_text())["reason"] == "trained for longer"
    assert champion(settings) == "2"
    assert registry.version_with(client_of(settings), TASK, "previous") == "1"

    assert states(story) == {"stale_scorer": num_videos, "minor": 1}
    promotion_story.score(story, limit=20)
    assert rows_by_version(story) == {"1": num_videos - 20, "2": 20}
    promotion_story.score(story)
    assert rows_by_version(story) == {"2": num_videos}

    # Version 2 began with version 1's weights, so whom that was trained on it has seen too.
    people = [registry.read_artifact(client_of(settings), run_of(settings, v), "dataset/people.txt") for v in "12"]
    assert people[0] is not None
    assert people[0] == people[1]
    assert train(story, form, 3, "wrong") == "3"
    if form == "short":
        gates = gates.model_copy(update={"shadow": None})
    assert promotion_story.decide(story, "3", reason="better on average", out="decision-3", gates=gates) is None
    third = decision_of(settings, "3")
    assert third.outcome == "refused"
    refused = {verdict.gate: verdict.what for verdict in third.verdicts if not verdict.passed}
    assert refused == {"slices": f"hair_color: {promotion_story.HAIR}: loss of mae"}
    assert third.differences["mae"].value < 0  # better on average
    assert champion(settings) == "2"

    promotion.rollback(client_of(settings), TASK, reason="withdrawn")
    assert champion(settings) == "1"
    assert states(story) == {"done": num_videos, "minor": 1}  # its rows were never lost
    told = [(item.kind, item.version, item.reason) for item in promotion.changes(client_of(settings), TASK)]
    assert told == [
        ("rollback", "1", "withdrawn"),
        ("promotion", "2", "trained for longer"),
        ("promotion", "1", "the first one"),
    ]


@pytest.mark.skipif(postgres.missing() is not None, reason=postgres.missing() or "")
def test_scorers_move_to_a_server_and_are_decided_there(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the story: its three versions, in a registry with Postgres and S3."""
    with postgres.postgres() as database, mlflow_server(tmp_path, database) as server:
        tracking = story.settings.tracking.model_copy(update={"uri": server.uri})
        settings = story.settings.model_copy(update={"tracking": tracking})
        here, there = client_of(story.settings), client_of(settings)
        digests = {str(item.version): item.tags["digest"] for item in registry.versions(here, TASK)}
        for version in ("1", "2", "3"):
            export_scorer(here, version, TASK, tmp_path / version)
            imported = import_scorer(there, tmp_path / version, experiment_id(there, tracking))
            assert str(imported.version) == version
            shutil.rmtree(tmp_path / version)
        assert {str(item.version): item.tags["digest"] for item in registry.versions(there, TASK)} == digests
        assert any(key.endswith("scorer/weights.safetensors") for key in server.artifacts())

        gates = GATES.model_copy(update={"shadow": None, "hardware": None})
        for version in ("1", "2"):
            decision, change = run_promote(asked(story, version, gates=gates, slices=("hair_color",)), settings)
            assert decision.outcome == "passed"
            assert change is not None
            assert decision_of(settings, version) == decision
        with pytest.raises(RunStopped, match="version 3 is not promoted: slices not passed"):
            run_promote(asked(story, "3", gates=gates, slices=("hair_color",)), settings)
        assert champion(settings) == "2"
        _, change = run_promote(
            asked(story, "3", gates=gates, slices=("hair_color",), force=True, reason="for a test"), settings
        )
        assert change is not None
        assert (change.kind, change.before, change.reason) == ("forced promotion", "2", "for a test")
        assert decision_of(settings, "3").outcome == "forced"
        # The tables know a scorer by its digest, whichever registry it is in; version 3 has scored nothing yet.
        told = replace(story, settings=settings)
        ((state, number), _) = states(told).items()
        assert state == "stale_scorer"
        promotion_story.score(told, limit=10)
        assert states(told) == {"stale_scorer": number - 10, "done": 10, "minor": 1}
        assert rows_by_version(told)["3"] == 10
        seen = promotion.look(there, TASK)
        promotion.rollback(there, TASK, reason="only a test")
        with pytest.raises(UserError, match="changed by somebody else meanwhile"):
            promotion.promote(there, TASK, "1", seen=seen)
        assert champion(settings) == "2"
        assert states(told) == {"done": number, "minor": 1}
        assert registry.version_with(there, TASK, "previous") == "1"
