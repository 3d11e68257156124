"""The champion changes in one step with its log; two at once, or one that dies half-way, are noticed."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from infra.errors import UserError
from infra.settings import TrackingSettings
from infra.tracking import experiment_id, tracking_client
from models import promotion, registry
from models.exchange import export_scorer, import_scorer
from models.scorer import ScorerError
from tests.unit.scorers import small_scorer


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with three versions, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("template")
    settings = TrackingSettings(uri=f"sqlite:///{folder}/mlflow.db")
    client = tracking_client(settings)
    for seed in range(3):
        small_scorer(folder / str(seed), "fs2k", seed=seed)
        run = client.create_run(experiment_id(client, settings))
        registry.register(client, folder / str(seed), run_id=run.info.run_id)
        client.log_text(run.info.run_id, "0123\nabcd", "dataset/people.txt")
    return folder


@pytest.fixture
def client(template: Path, tmp_path: Path) -> MlflowClient:
    shutil.copy(template / "mlflow.db", tmp_path / "mlflow.db")
    return tracking_client(TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db"))


def aliases(client: MlflowClient) -> dict[str, str]:
    return {name: str(version) for name, version in client.get_registered_model("facereel-fs2k").aliases.items()}


def test_promotions_and_rollbacks_move_the_aliases_and_say_who_and_why(client: MlflowClient) -> None:
    registry.set_alias(client, "fs2k", "2", "challenger")
    first = promotion.promote(client, "fs2k", "1", reason="the first", by="ada@lab")
    assert (first.number, first.before, first.by, first.state) == (1, None, "ada@lab", "done")
    assert aliases(client) == {"champion": "1", "challenger": "2"}
    promotion.promote(client, "fs2k", "2")
    assert aliases(client) == {"champion": "2", "previous": "1"}  # it challenges nobody any more
    promotion.promote(client, "fs2k", "3", kind="forced promotion", reason="we need it")
    assert aliases(client) == {"champion": "3", "previous": "2"}
    assert promotion.rollback(client, "fs2k", reason="bad in the dark").version == "2"
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert promotion.rollback(client, "fs2k", reason="still bad").version == "1"
    assert aliases(client) == {"champion": "1"}
    with pytest.raises(UserError, match="no earlier champion"):
        promotion.rollback(client, "fs2k", reason="further")
    told = [(item.number, item.kind, item.before, item.version) for item in promotion.changes(client, "fs2k")]
    assert told == [
        (5, "rollback", "2", "1"),
        (4, "rollback", "3", "2"),
        (3, "forced promotion", "2", "3"),
        (2, "promotion", "1", "2"),
        (1, "promotion", None, "1"),
    ]
    # Forward again after going back: the way back from there is to where it came from.
    promotion.promote(client, "fs2k", "3")
    assert aliases(client) == {"champion": "3", "previous": "1"}


def test_what_was_decided_on_an_old_state_changes_nothing(client: MlflowClient) -> None:
    promotion.promote(client, "fs2k", "1")
    seen = promotion.look(client, "fs2k")
    promotion.promote(client, "fs2k", "2", by="grace@lab")
    with pytest.raises(UserError, match=r"changed by somebody else meanwhile \(now version 2; change 2.*grace@lab"):
        promotion.promote(client, "fs2k", "3", seen=seen)
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert promotion.changes(client, "fs2k")[0].state == "void"
    promotion.promote(client, "fs2k", "3")  # looked at again
    assert aliases(client) == {"champion": "3", "previous": "2"}


def test_an_alias_that_was_moved_by_hand_is_noticed(client: MlflowClient) -> None:
    promotion.promote(client, "fs2k", "1")
    seen = promotion.look(client, "fs2k")
    client.set_registered_model_alias("facereel-fs2k", "champion", "3")
    with pytest.raises(UserError, match="by hand"):
        promotion.promote(client, "fs2k", "2", seen=seen)
    assert aliases(client)["champion"] == "3"


def test_of_many_at_once_one_comes_through(client: MlflowClient) -> None:
    promotion.promote(client, "fs2k", "1")
    seen = promotion.look(client, "fs2k")

    def attempt(version: str) -> bool:
        try:
            promotion.promote(client, "fs2k", version, seen=seen)
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        through = list(pool.map(attempt, ["2", "3", "2", "3"]))
    assert through.count(True) == 1
    states = [item.state for item in promotion.changes(client, "fs2k")]
    assert states.count("done") == 2  # the first champion's, and one of these
    assert set(states) <= {"done", "void"}
    champion = aliases(client)["champion"]
    assert champion == ["2", "3", "2", "3"][through.index(True)]


def test_one_that_dies_before_the_alias_moves_leaves_the_champion(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote(client, "fs2k", "1")
    with monkeypatch.context() as patched:
        patched.setattr(
            type(client), "set_registered_model_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
        )
        with pytest.raises(KeyboardInterrupt):
            promotion.promote(client, "fs2k", "2")
    assert aliases(client) == {"champion": "1"}
    assert promotion.changes(client, "fs2k")[0].state == "pending"
    with pytest.raises(UserError, match=r"change 2, promotion of version 2 by .*, pending"):
        promotion.promote(client, "fs2k", "3")
    # A refused one in between does not hide the one that is under way.
    with pytest.raises(UserError, match=r"change 2, promotion of version 2 by .*, pending"):
        promotion.promote(client, "fs2k", "3")
    monkeypatch.setattr(promotion, "PENDING_S", 0.0)
    monkeypatch.setattr(promotion.time, "monotonic", lambda: 0.0)
    promotion.promote(client, "fs2k", "3")
    assert aliases(client) == {"champion": "3", "previous": "1"}
    assert [item.state for item in promotion.changes(client, "fs2k")] == ["done", "void", "void", "void", "done"]


def test_one_that_dies_between_the_aliases_can_be_rolled_back(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote(client, "fs2k", "1")
    moved = type(client).set_registered_model_alias

    def dies_after_the_champion(self: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias == "previous":
            raise KeyboardInterrupt
        moved(self, name, alias, version)

    with monkeypatch.context() as patched:
        patched.setattr(type(client), "set_registered_model_alias", dies_after_the_champion)
        with pytest.raises(KeyboardInterrupt):
            promotion.promote(client, "fs2k", "2")
    assert aliases(client) == {"champion": "2"}
    monkeypatch.setattr(promotion, "PENDING_S", 0.0)
    monkeypatch.setattr(promotion.time, "monotonic", lambda: 0.0)
    assert promotion.rollback(client, "fs2k", reason="it never worked").version == "1"
    assert aliases(client) == {"champion": "1"}
    assert [item.state for item in promotion.changes(client, "fs2k")] == ["done", "done", "done"]


def test_one_that_was_taken_for_dead_changes_nothing_when_it_wakes(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote(client, "fs2k", "1")
    seen = promotion.look(client, "fs2k")
    close, is_asleep = promotion._close_abandoned, [True]

    def sleeps(*arguments: object) -> None:
        if is_asleep.pop():
            is_asleep.append(False)
            promotion.promote(client, "fs2k", "3", by="the other")
        close(*arguments)

    monkeypatch.setattr(promotion, "_close_abandoned", sleeps)
    monkeypatch.setattr(promotion, "PENDING_S", 0.0)
    monkeypatch.setattr(promotion.time, "monotonic", lambda: 0.0)
    with pytest.raises(UserError, match="held up for too long"):
        promotion.promote(client, "fs2k", "2", seen=seen)
    assert aliases(client) == {"champion": "3", "previous": "1"}


def test_going_back_after_going_back_and_forth_goes_further_back(client: MlflowClient) -> None:
    for version in ("1", "2", "1"):
        promotion.promote(client, "fs2k", version)
    assert promotion.rollback(client, "fs2k", reason="a").version == "2"
    assert promotion.rollback(client, "fs2k", reason="b").version == "1"
    with pytest.raises(UserError, match="no earlier champion"):
        promotion.rollback(client, "fs2k", reason="c")


def test_unknown_and_changed_versions_are_refused(client: MlflowClient) -> None:
    with pytest.raises(UserError, match="no scorer"):
        promotion.promote(client, "fs2k", "9")
    with pytest.raises(UserError, match="cannot be an alias"):
        registry.set_alias(client, "fs2k", "1", "v3")
    client.set_model_version_tag("facereel-fs2k", "2", "digest", "0" * 64)
    with pytest.raises(ScorerError, match="another scorer"):
        promotion.promote(client, "fs2k", "2")
    promotion.promote(client, "fs2k", "1")
    with pytest.raises(UserError, match="version 1 is the champion already"):
        promotion.promote(client, "fs2k", "1")
    assert aliases(client) == {"champion": "1"}


def test_a_scorer_moves_to_another_registry_unchanged(client: MlflowClient, tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/production.db")
    production = tracking_client(settings)
    exported = export_scorer(client, "2", "fs2k", tmp_path / "out")
    experiment = experiment_id(production, settings)
    (tmp_path / "2").mkdir()  # a folder of that name is not what is meant
    imported = import_scorer(production, tmp_path / "out", experiment)
    assert str(imported.version) == "1"
    there = registry.resolve(production, "1", task="fs2k")
    here = registry.resolve(client, "2", task="fs2k")
    assert there.scorer.digest == here.scorer.digest == exported.tags["digest"]
    files = sorted(path.name for path in here.directory.iterdir())
    assert sorted(path.name for path in there.directory.iterdir()) == files
    assert all((there.directory / name).read_bytes() == (here.directory / name).read_bytes() for name in files)
    tags = production.get_model_version("facereel-fs2k", "1").tags
    assert {name: tags[name] for name in exported.tags} == exported.tags
    assert tags["origin"].startswith("models:/facereel-fs2k/2 of sqlite:///")
    assert registry.read_artifact(production, str(imported.run_id), "dataset/people.txt").split() == ["0123", "abcd"]
    with pytest.raises(UserError, match="models:/facereel-fs2k/1 is this scorer already"):
        import_scorer(production, tmp_path / "out", experiment)
    with pytest.raises(UserError, match="holds something already"):
        export_scorer(client, "2", "fs2k", tmp_path / "out")


def test_a_changed_export_is_refused(client: MlflowClient, tmp_path: Path) -> None:
    export_scorer(client, "3", "fs2k", tmp_path / "out")
    weights = tmp_path / "out" / "scorer" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ScorerError, match="weights"):
        import_scorer(client, tmp_path / "out", "0")
    with pytest.raises(UserError, match="no export of a scorer"):
        import_scorer(client, tmp_path / "nowhere", "0")
