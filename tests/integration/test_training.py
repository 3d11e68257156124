"""Preparing and training on a local Ray cluster: from labelled videos to a registered scorer that scores."""

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from infra.errors import RunStopped, UserError
from infra.settings import TrackingSettings
from infra.storage import Storage
from infra.tracking import tracking_client
from models import promotion, registry
from models.predictor import Predictor
from models.tasks.base import get_task
from ray_jobs.crops.dataset import DatasetManifest, read_manifest
from ray_jobs.evaluating import EvaluateConfig, run_evaluate
from ray_jobs.interrupts import SIGNALS
from ray_jobs.preparing import PrepareConfig, run_prepare
from ray_jobs.score_config import ScoreConfig
from ray_jobs.scoring import run_score
from ray_jobs.training.checkpoint import LAST, Checkpoints
from ray_jobs.training.checks import check_dataset
from ray_jobs.training.config import TrainConfig
from ray_jobs.training.recipe import Recipe, resolve_recipe
from ray_jobs.training.run import TrainResult, run_train
from ray_jobs.tuning import TuneConfig, run_tune
from tests.integration.conftest import FACE_POLICY, FRAME_POLICY, World
from tests.mlflow_server import mlflow_server
from tests.training import training_here

pytestmark = pytest.mark.ray


def labels_without_creators(world: World) -> str:
    """The few drawn creators would all stand on one side: without them each video is a group."""
    table = pyarrow.csv.read_csv(world.drawn.truth).drop_columns(["creator_id"])
    pyarrow.csv.write_csv(table, world.folder / "videos.csv")
    return str(world.folder / "videos.csv")


@pytest.fixture(scope="module")
def dataset(world: World) -> tuple[str, DatasetManifest]:
    out = str(world.folder / "crops")
    manifest = run_prepare(
        PrepareConfig(
            out=out,
            labels=labels_without_creators(world),
            frame_policy=FRAME_POLICY,
            face_policy=FACE_POLICY,
        ),
        world.settings,
    )
    return out, manifest


def train_config(world: World, crops: str, **options: object) -> TrainConfig:
    recipe: dict[str, object] = {"backbone": "shufflenet_v2_x0_5", "input_size": 32, "epochs": 2, "batch_size": 16}
    recipe |= {name: options.pop(name) for name in list(options) if name in Recipe.model_fields}
    values: dict[str, object] = {
        "task": "fs2k",
        "dataset": crops,
        "name": "test",
        "storage": str(world.folder / "train"),
        "recipe": recipe,
        "num_workers": 2,
    }
    return TrainConfig.model_validate(values | options)


@pytest.fixture(scope="module")
def trained(world: World, dataset: tuple[str, DatasetManifest]) -> TrainResult:
    return run_train(train_config(world, dataset[0]), world.settings)


def test_the_dataset_has_both_sides_and_both_tasks(dataset: tuple[str, DatasetManifest]) -> None:
    out, manifest = dataset
    assert read_manifest(out, Storage()) == manifest
    assert manifest.tasks == ("attractiveness", "fs2k")
    assert set(manifest.num_crops) == {"train", "val"}
    assert sum(manifest.num_crops.values()) + sum(manifest.dropped_frames.values()) == 3 * manifest.num_videos
    assert manifest.num_videos + manifest.num_rows_removed == manifest.num_rows


@pytest.mark.parametrize(("split", "what"), [("train", "training"), ("val", "validation")])
def test_a_split_without_a_label_is_refused(
    world: World, dataset: tuple[str, DatasetManifest], split: str, what: str
) -> None:
    out, manifest = dataset
    bare = manifest.splits[split].model_copy(update={"classes": manifest.splits[split].classes | {"smile": {}}})
    manifest = manifest.model_copy(update={"splits": dict(manifest.splits) | {split: bare}})
    with pytest.raises(UserError, match=f"has no {what} crop with the label smile"):
        check_dataset(train_config(world, out), get_task("fs2k"), manifest)


def test_the_scorer_is_registered_with_its_policies_and_metrics(
    world: World, dataset: tuple[str, DatasetManifest], trained: TrainResult
) -> None:
    client = tracking_client(world.settings.tracking)
    found = registry.resolve(client, f"models:/facereel-fs2k/{trained.version}", task="fs2k")
    manifest = found.scorer.manifest
    assert found.scorer.digest == trained.digest
    assert (manifest.frame_policy, manifest.face_policy) == (FRAME_POLICY, FACE_POLICY)
    assert manifest.dataset_fingerprint == dataset[1].fingerprint
    assert manifest.training.num_val_rows == dataset[1].num_crops["val"]
    assert set(manifest.metrics) == set(manifest.baseline_metrics)


def test_a_frozen_backbone_stays_as_it_was_and_a_balanced_run_says_what_it_was_trained_on(
    world: World, dataset: tuple[str, DatasetManifest], trained: TrainResult
) -> None:
    options = {"weights": trained.version, "epochs": 1, "freeze_epochs": 1, "num_workers": 1}
    options |= {"per_class": 20, "balance_by": "gender"}
    with training_here():
        frozen = run_train(train_config(world, dataset[0], name="frozen", **options), world.settings)
    client = tracking_client(world.settings.tracking)
    before, after = (
        registry.resolve(client, version, task="fs2k").scorer.network.state_dict()
        for version in (trained.version, frozen.version)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert client.get_run(frozen.run_id).data.params["per_class"] == "20"
    assert {file.path for file in client.list_artifacts(frozen.run_id, "dataset")} == {
        "dataset/card.html",
        "dataset/dataset.json",
        "dataset/people.txt",
    }


def test_mlflow_has_every_epoch_once(world: World, trained: TrainResult) -> None:
    client = tracking_client(world.settings.tracking)
    assert client.get_run(trained.run_id).info.status == "FINISHED"
    history = client.get_metric_history(trained.run_id, "f1_macro_mean")
    assert [metric.step for metric in history] == [0, 1]


def test_the_same_steps_computed_in_another_way_are_the_same_run(
    world: World, dataset: tuple[str, DatasetManifest], trained: TrainResult
) -> None:
    """What helps where memory ran out does not cost the epochs so far."""
    options = {"accumulate": 2, "precision": "float32", "checkpoint_every_steps": 7}
    assert run_train(train_config(world, dataset[0], **options), world.settings).version == trained.version


def test_a_promoted_scorer_scores_the_catalog(world: World, trained: TrainResult, tmp_path: Path) -> None:
    client = tracking_client(world.settings.tracking)
    promotion.promote(client, "fs2k", trained.version)
    config = ScoreConfig(catalog=str(world.drawn.catalog), tables=str(tmp_path), scorers={})
    result = run_score(config, world.settings)
    assert list(result.plan.counts) == ["fs2k"]
    assert result.outcome is not None
    assert result.outcome.scored >= 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": "nowhere"}, "no crops dataset there"),
        ({"task": "other"}, "no task 'other'"),
        ({"backbone": "resnet19"}, "did you mean"),
        ({"name": "other", "num_workers": 9}, "lower --workers"),
        ({"name": "other", "batch_size": 5000}, "lower it"),
        ({"name": "other", "loss": "mean_variance"}, "has no loss 'mean_variance'"),
        ({"name": "other", "per_class": 20}, "say which one with --balance-by"),
        ({"name": "other", "per_class": 20, "balance_by": "age"}, "--balance-by age is none of them"),
        ({"name": "other", "per_class": 1, "balance_by": "gender"}, "raise --per-class"),
        ({"epochs": 3}, "with other options exists"),
        ({"weights": "champion"}, "with other options exists"),
    ],
)
def test_bad_options_are_refused(
    world: World, dataset: tuple[str, DatasetManifest], trained: TrainResult, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run_train(train_config(world, dataset[0], **options), world.settings)


def test_an_evaluation_says_what_the_scorer_is_worth(
    world: World, dataset: tuple[str, DatasetManifest], trained: TrainResult, tmp_path: Path
) -> None:
    reference = f"models:/facereel-fs2k/{trained.version}"
    config = EvaluateConfig(
        task="fs2k", dataset=dataset[0], out=str(tmp_path), scorer=reference, against=reference, num_resamples=5
    )
    config = replace(config, slices=("source",))
    found = run_evaluate(config, world.settings)
    manifest = trained.manifest
    # Training measured the same rows by the same network: the same figures.
    assert found.per_image["f1_macro_mean"].value == pytest.approx(manifest.metrics["f1_macro_mean"], abs=1e-6)
    assert found.per_image["f1_macro_mean"].baseline == pytest.approx(manifest.baseline_metrics["f1_macro_mean"])
    assert found.num_rows == dataset[1].num_crops["val"]
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["scorer"]["digest"] == trained.digest
    assert all(figure["value"] == 0 for figure in result["against"]["differences"].values())
    assert ["best epoch chosen by this split" in note for note in result["notes"]] == [True, True, False]
    assert result["notes"][2].startswith("--slice source: it has no value")  # all labels are of one file
    predictions = pq.read_table(tmp_path / "predictions.parquet")
    assert predictions.num_rows == found.num_rows
    assert {"label_smile", "smile", "smile_p"} <= set(predictions.column_names)
    page = (tmp_path / "evaluation.html").read_text()
    assert page.count("<li><img") >= 12
    assert 'after the last of 2"' in page
    folder = f"evaluation/{dataset[1].fingerprint[:16]}-val"
    logged = {file.path for file in tracking_client(world.settings.tracking).list_artifacts(trained.run_id, folder)}
    assert logged == {f"{folder}/evaluation.html", f"{folder}/evaluation.json"}
    for wrong, words in (
        ({"split": "test"}, "no split 'test'"),
        ({"scorer": "77"}, "77"),
        ({"slices": ("beard",)}, "--slice beard: the dataset has the columns"),
    ):
        with pytest.raises(UserError, match=words):
            run_evaluate(replace(config, **wrong), world.settings)


def test_a_killed_worker_and_a_stopped_driver_change_nothing(
    world: World, dataset: tuple[str, DatasetManifest], tmp_path: Path
) -> None:
    """Bitwise on one CPU worker: the run goes on in the middle of an epoch, in its MLflow run, as if nothing were.

    Its crops are streamed, so other processes decode them, and end with their worker.
    """
    options = {
        "epochs": 8,
        "resident_bytes": 0,
        "batch_size": 4,
        "num_workers": 1,
        "checkpoint_every_steps": 2,
        "log_every_steps": 1,
    }
    options |= {"storage": str(tmp_path), "ema": 0.9, "dropout": 0.2, "mixup": 0.2, "cutmix": 1.0, "mirror": True}
    with training_here():
        calm = run_train(train_config(world, dataset[0], name="calm", **options), world.settings)
    config = train_config(world, dataset[0], name="shaken", **options)
    client, handlers = tracking_client(world.settings.tracking), [signal.getsignal(number) for number in SIGNALS]
    checkpoints = Checkpoints(str(tmp_path), "shaken", Storage())
    killed: list[int] = []

    def shake(number: signal.Signals) -> None:
        if not killed:
            killed.append(_kill_worker(checkpoints))
        _signal_after_epoch(checkpoints, number)

    # What `ray job stop` sends, which Ray Train hears as Ctrl-C; and Ctrl-C.
    for number, place in ((signal.SIGTERM, contextlib.nullcontext()), (signal.SIGINT, training_here())):
        thread = threading.Thread(target=shake, args=(number,), daemon=True)
        thread.start()
        with place, pytest.raises(RunStopped, match="go on with the same command and --name shaken") as stopped:
            run_train(config, world.settings)
        thread.join()
        assert stopped.value.exit_code == 128 + number
        record = json.loads((tmp_path / "shaken.json").read_text())
        assert client.get_run(record["mlflow_run_id"]).info.status == "KILLED"
        assert [signal.getsignal(other) for other in SIGNALS] == handlers
    assert killed
    with training_here():
        shaken = run_train(config, world.settings)
    assert shaken.run_id == record["mlflow_run_id"]
    assert shaken.digest == calm.digest
    assert calm.manifest.metrics == shaken.manifest.metrics
    assert len(calm.manifest.training.curves["loss"]) == 8
    for name in ("train_loss", "learning_rate", "loss", "f1_macro_mean"):
        histories = [client.get_metric_history(run.run_id, name) for run in (calm, shaken)]
        steps = [metric.step for metric in histories[1]]
        assert len(steps) == len(set(steps))
        assert [(m.step, m.value) for m in histories[0]] == [(m.step, m.value) for m in histories[1]], name
    # A finished run gives its result.
    again = run_train(config, world.settings)
    assert (again.version, again.digest, again.run_id) == (shaken.version, shaken.digest, shaken.run_id)


def _kill_worker(checkpoints: Checkpoints) -> int:
    """Kill the worker after its first epoch, within another; the step of the last checkpoint then."""
    while True:
        state = checkpoints.load(LAST)
        if state is not None and state["epoch"] >= 1 and state["step"] > 0:
            workers = [process for process in psutil.Process().children(recursive=True) if _is_train_worker(process)]
            if len(workers) != 1:
                continue  # another one is on its way
            (worker,) = workers
            decoders = worker.children(recursive=True)
            assert decoders
            worker.kill()
            assert psutil.wait_procs(decoders, timeout=30)[1] == []
            return int(state["step"])
        time.sleep(0.02)


def _is_train_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False


def _signal_after_epoch(checkpoints: Checkpoints, number: signal.Signals) -> None:
    """Send this process a signal when the run has come one epoch further."""

    def epoch() -> int:
        state = checkpoints.load(LAST)
        return 0 if state is None else int(state["epoch"])

    before = epoch()
    while epoch() == before:
        time.sleep(0.05)
    os.kill(os.getpid(), number)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    world: World, dataset: tuple[str, DatasetManifest], tmp_path: Path
) -> None:
    options: dict[str, object] = {"num_workers": 1, "storage": str(tmp_path), "name": "wild", "log_every_steps": 1}
    options |= {"optimizer": "sgd", "learning_rate": 1e30, "clip_norm": 1e30, "weight_decay": 0.0, "batch_size": 4}
    with (
        training_here(),
        pytest.raises(UserError, match=r"not finite at epoch \d+, step \d+ \(videos .+new run .+lower learning_rate"),
    ):
        run_train(train_config(world, dataset[0], **options), world.settings)
    assert not (tmp_path / "wild" / "best.pt").exists()


def test_a_search_tries_recipes_and_writes_the_best(
    world: World, dataset: tuple[str, DatasetManifest], tmp_path: Path
) -> None:
    base = train_config(world, dataset[0], name="search", storage=str(tmp_path), num_workers=1, epochs=1)
    config = TuneConfig(base=base, space={"learning_rate": [1e-3, 1e-4]}, num_trials=2, num_concurrent=2)
    best = run_tune(config, world.settings)
    assert best.learning_rate in (1e-3, 1e-4)
    assert resolve_recipe(str(tmp_path / "search" / "best.yaml"), {}) == best
    client = tracking_client(world.settings.tracking)
    experiment = client.get_experiment_by_name(world.settings.tracking.experiment)
    (parent,) = client.search_runs([experiment.experiment_id], "tags.mlflow.runName = 'search'")
    children = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) == 2
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert all("f1_macro_mean" in run.data.metrics for run in children)


def test_a_tracking_server_with_artifacts_in_s3_has_all_of_an_ordinal_run(
    world: World, dataset: tuple[str, DatasetManifest], tmp_path: Path
) -> None:
    with mlflow_server(tmp_path) as server:
        settings = world.settings.model_copy(update={"tracking": TrackingSettings(uri=server.uri)})
        options = {"task": "attractiveness", "loss": "corn", "epochs": 1, "num_workers": 1}
        config = train_config(world, dataset[0], storage=str(tmp_path / "train"), **options)
        with training_here():
            trained = run_train(config, settings)
        client = tracking_client(settings.tracking)
        assert client.get_run(trained.run_id).info.status == "FINISHED"
        assert [metric.step for metric in client.get_metric_history(trained.run_id, "mae")] == [0]
        found = registry.resolve(client, trained.version, task="attractiveness")
        assert found.scorer.digest == trained.digest
        evaluation = EvaluateConfig(
            "attractiveness", dataset[0], str(tmp_path / "out"), scorer=trained.version, num_resamples=5
        )
        run_evaluate(evaluation, settings)
        names = {key.rsplit("/artifacts/", 1)[1] for key in server.artifacts()}
    folder = f"evaluation/{dataset[1].fingerprint[:16]}-val"
    assert {"scorer/weights.safetensors", "dataset/card.html", f"{folder}/evaluation.html"} <= names
    # An ordinal scorer is one like any other.
    assert found.scorer.network.classifier.out_features == 39
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    answers = Predictor(found.scorer).probabilities(crops)["score"]
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-5)
