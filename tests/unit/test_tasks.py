import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import balanced_accuracy_score, f1_score

import models.tasks
from infra.errors import UserError
from models.network import build_network
from models.predictor import Predictor
from models.scorer import load_scorer, save_scorer
from models.tasks.attractiveness import SCORES, expectation, median, standard_deviation
from models.tasks.base import MISSING, Head, get_task, task_names
from models.tasks.fs2k import from_official
from models.transforms import InputConfig, to_input
from tests.unit.scorers import CROP_SIZE, INPUT_SIZE, small_manifest

FS2K = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "fs2k" / "anno_train.json"


def one_hot(task, targets):
    return {
        head.name: np.eye(len(head.classes), dtype=np.float32)[targets[:, column]]
        for column, head in enumerate(task.heads)
    }


def random_probabilities(task, num_rows, seed=0):
    rng = np.random.default_rng(seed)
    return {head.name: rng.dirichlet(np.ones(len(head.classes)), num_rows).astype(np.float32) for head in task.heads}


def random_targets(task, num_rows, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, len(head.classes), num_rows) for head in task.heads], axis=1)


# --- the small base


def test_both_tasks_are_found_by_name():
    assert {"attractiveness", "fs2k"} <= set(task_names())
    assert get_task("fs2k") is get_task("fs2k")


def test_unknown_task_lists_the_known_ones():
    with pytest.raises(UserError, match=r"no task 'age'.*attractiveness, fs2k"):
        get_task("age")


@pytest.mark.parametrize("classes", [(True, False), ("a",), ("a", "A"), (1, "a"), (), (1.5, 2.5)])
def test_heads_refuse_classes_that_users_could_not_tell_apart(classes):
    with pytest.raises(ValueError, match=r"classes|validation"):
        Head(name="x", classes=classes)


def test_head_classes_keep_their_types_through_json():
    for head in (
        Head(name="x", classes=(False, True)),
        Head(name="x", classes=(0, 1)),
        Head(name="x", classes=("0", "1")),
    ):
        read = Head.model_validate_json(head.model_dump_json())
        assert read == head
        assert [type(value) for value in read.classes] == [type(value) for value in head.classes]


@pytest.mark.parametrize("make", [list, lambda values: np.array(values, dtype=object), pa.array])
def test_yes_no_labels_are_encoded_as_false_true(make):
    task = get_task("fs2k")
    columns = {name: make([None, None, None]) for name in task.label_columns} | {"smile": make([True, None, False])}
    assert task.encode_labels(columns)[:, task.label_columns.index("smile")].tolist() == [1, MISSING, 0]


def test_labels_may_be_text_of_any_case_or_whole_floats():
    assert Head(name="smile", classes=(False, True)).encode(["True", " false", "", "TRUE"]).tolist() == [1, 0, -1, 1]
    assert Head(name="gender", classes=("male", "female")).encode(["Female", "male "]).tolist() == [1, 0]
    assert Head(name="hair_color", classes=("brown", "none")).encode(["none", None]).tolist() == [1, -1]
    assert Head(name="score", classes=(60, 61)).encode([61.0, "60", math.nan, np.int64(61)]).tolist() == [1, 0, -1, 1]


@pytest.mark.parametrize(
    ("classes", "value"),
    [
        ((False, True), 0),  # raw codes of yes/no attributes are inverted in FS2K: they must not pass as booleans
        ((False, True), 1.0),
        ((False, True), "yes"),
        ((0, 1), True),
        ((60, 61), 60.5),
        ((60, 61), 59),
        ((60, 61), math.inf),
        (("male", "female"), "m"),
    ],
)
def test_a_bad_label_is_refused_by_column_row_and_value(classes, value):
    good = str(classes[0])
    with pytest.raises(UserError) as caught:
        Head(name="label", classes=classes).encode([good, None, value])
    assert "column 'label', row 2" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_encode_labels_stacks_heads_in_order_and_checks_columns():
    task = get_task("attractiveness")
    assert task.encode_labels({"score": [60, 99, None], "other": [1, 2, 3]}).tolist() == [[0], [39], [MISSING]]
    with pytest.raises(UserError, match=r"needs the label columns score; the table has url"):
        task.encode_labels({"url": []})
    fs2k = get_task("fs2k")
    columns = {name: [None, None] for name in fs2k.label_columns}
    with pytest.raises(UserError, match="differ in length"):
        fs2k.encode_labels(columns | {"hair": [None]})


def test_loss_is_the_mean_over_heads_of_cross_entropy_over_known_labels():
    task = get_task("fs2k")
    targets = torch.from_numpy(random_targets(task, 6))
    targets[2, 0] = targets[:, 3] = MISSING
    logits = {head.name: torch.randn(6, len(head.classes)) for head in task.heads}
    expected = []
    for column, head in enumerate(task.heads):
        rows = [
            -torch.log_softmax(logits[head.name][row], 0)[target]
            for row, target in enumerate(targets[:, column].tolist())
            if target != MISSING
        ]
        expected.append(sum(rows) / len(rows) if rows else torch.tensor(0.0))
    torch.testing.assert_close(task.loss(logits, targets), torch.stack(expected).mean())


def test_loss_of_unlabelled_rows_is_zero_with_a_finite_gradient():
    task = get_task("attractiveness")
    logits = torch.zeros(3, 40, requires_grad=True)
    loss = task.loss({"score": logits}, torch.full((3, 1), MISSING))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 40))


@pytest.mark.parametrize("name", ["attractiveness", "fs2k"])
@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_columns_are_those_of_the_output_schema(name, num_rows):
    task = get_task(name)
    columns = task.columns(random_probabilities(task, num_rows))
    schema = task.output_schema()
    assert list(columns) == schema.names
    table = pa.table({field.name: pa.array(columns[field.name], type=field.type) for field in schema}, schema=schema)
    assert table.num_rows == num_rows


@pytest.mark.parametrize("name", ["attractiveness", "fs2k"])
def test_baseline_is_the_class_frequencies_of_the_training_labels(name):
    task = get_task(name)
    train = random_targets(task, 50)
    train[:10, 0] = MISSING
    for column, head in enumerate(task.heads):
        row = task.baseline(train)[head.name]
        known = [value for value in train[:, column] if value != MISSING]
        expected = [known.count(index) / len(known) for index in range(len(head.classes))]
        np.testing.assert_allclose(row, [expected], rtol=1e-6)
    test = random_targets(task, 20, seed=1)
    repeated = {head: np.repeat(row, 20, axis=0) for head, row in task.baseline(train).items()}
    assert task.baseline_metrics(train, test) == task.metrics(repeated, test)


@pytest.mark.parametrize("name", ["attractiveness", "fs2k"])
def test_metrics_need_a_label_and_do_not_depend_on_unlabelled_rows(name):
    task = get_task(name)
    probabilities, targets = random_probabilities(task, 30), random_targets(task, 30)
    with pytest.raises(UserError, match="nothing to measure on"):
        task.metrics(probabilities, np.full_like(targets, MISSING))
    half = targets.copy()
    half[15:] = MISSING
    first = {head: p[:15] for head, p in probabilities.items()}
    assert task.metrics(probabilities, half) == task.metrics(first, targets[:15])
    assert task.best_metric in task.metrics(probabilities, targets)


# --- attractiveness


distributions = arrays(np.float32, (40,), elements=st.floats(0, 1, width=32)).filter(lambda p: p.sum() > 0.01)


@given(distributions)
def test_expectation_median_and_deviation_agree_with_their_definitions(weights):
    p = weights / weights.sum(dtype=np.float32)
    total = math.fsum(float(x) for x in p)
    mean = math.fsum(float(x) * k for x, k in zip(p, range(60, 100), strict=True)) / total
    variance = math.fsum(float(x) * (k - mean) ** 2 for x, k in zip(p, range(60, 100), strict=True)) / total
    assert expectation(p[None])[0] == pytest.approx(mean, abs=1e-9)
    assert standard_deviation(p[None])[0] == pytest.approx(math.sqrt(variance), abs=1e-6)
    half = median(p[None])[0]
    below = math.fsum(float(x) for x in p[: half - 60])
    upto = math.fsum(float(x) for x in p[: half - 60 + 1])
    assert below < total / 2 + 1e-12
    assert upto >= total / 2 - 1e-12
    assert p[half - 60] > 0


@given(st.integers(60, 99))
def test_a_certain_score_is_its_own_expectation_median_and_most_likely_value(score):
    p = (score == SCORES).astype(np.float32)[None]
    columns = get_task("attractiveness").columns({"score": p}, {"score": 3.0})
    assert columns["score"][0] == columns["score_median"][0] == columns["score_argmax"][0] == score
    assert columns["score_std"][0] == 0
    assert columns["score_low"][0] == max(60, score - 3)
    assert columns["score_high"][0] == min(99, score + 3)


def test_median_of_two_equal_halves_is_the_lower_score():
    p = np.zeros((1, 40), np.float32)
    p[0, [10, 30]] = 0.5
    assert median(p).tolist() == [70]


def test_without_calibration_the_interval_is_null():
    columns = get_task("attractiveness").columns(random_probabilities(get_task("attractiveness"), 3))
    assert columns["score_low"] == columns["score_high"] == [None] * 3


def test_attractiveness_metrics_on_a_worked_example():
    task = get_task("attractiveness")
    targets = task.encode_labels({"score": [70, 70, 80, 90]})
    answers = task.encode_labels({"score": [70, 72, 80, 81]})
    figures = task.metrics(one_hot(task, answers), targets)
    assert figures["mae"] == figures["mae_median"] == pytest.approx(11 / 4)
    assert figures["mae_balanced"] == pytest.approx((1 + 0 + 9) / 3)
    assert figures["within_5"] == 0.75
    assert figures["exact"] == 0.5
    assert figures["rmse"] == pytest.approx(math.sqrt(85 / 4))
    assert figures["spearman"] == pytest.approx(0.9486832980505138)  # ranks 1.5 1.5 3 4 against 1 2 3 4


def test_constant_answer_on_a_uniform_set_has_mae_ten_and_ranks_nothing():
    task = get_task("attractiveness")
    uniform = np.arange(40)[:, None]
    figures = task.baseline_metrics(uniform, uniform)
    assert figures["mae"] == pytest.approx(10)
    assert figures["spearman"] == 0


def test_residuals_are_the_absolute_errors_of_labelled_rows():
    task = get_task("attractiveness")
    targets = np.array([[0], [MISSING], [39]])
    answers = one_hot(task, np.array([[5], [5], [39]]))
    assert task.residuals(answers, targets)["score"].tolist() == [5, 0]


# --- fs2k


OFFICIAL = {"image_name": "photo1/image0110", "hair": 0, "hair_color": 2, "gender": 0, "earring": 1, "smile": 1}
OFFICIAL |= {"frontal_face": 1, "style": 0, "skin_color": [163, 139]}


def test_official_codes_are_turned_into_what_they_say():
    assert from_official(OFFICIAL) == {
        "hair": True,
        "gender": "male",
        "earring": False,
        "smile": False,
        "frontal_face": False,
        "hair_color": "red",
        "style": 0,
    }
    other = OFFICIAL | {
        "hair": 1,
        "hair_color": 3,
        "gender": 1,
        "earring": 0,
        "smile": 0,
        "frontal_face": 0,
        "style": 2,
    }
    assert from_official(other) == {
        "hair": False,
        "gender": "female",
        "earring": True,
        "smile": True,
        "frontal_face": True,
        "hair_color": "none",
        "style": 2,
    }


@pytest.mark.parametrize("code", [2, -1, "0", None, True, 0.0])
def test_official_codes_that_do_not_exist_are_refused(code):
    with pytest.raises(UserError, match=r"photo1/image0110.*smile is"):
        from_official(OFFICIAL | {"smile": code})


def test_official_labels_can_be_encoded():
    task = get_task("fs2k")
    labels = from_official(OFFICIAL)
    encoded = task.encode_labels({name: [labels[name]] for name in task.label_columns})
    answer = task.columns(one_hot(task, encoded))
    assert {name: answer[name].tolist()[0] for name in task.label_columns} == labels


def test_fs2k_columns_show_what_users_understand():
    task = get_task("fs2k")
    probabilities = random_probabilities(task, 1)
    probabilities |= {
        "smile": np.array([[0.2, 0.8]], np.float32),
        "gender": np.array([[0.3, 0.7]], np.float32),
        "hair_color": np.array([[0.1, 0.2, 0.05, 0.05, 0.6]], np.float32),
        "style": np.array([[0.1, 0.7, 0.2]], np.float32),
    }
    columns = task.columns(probabilities)
    assert columns["smile"].tolist() == [True]
    assert columns["smile_p"].tolist() == pytest.approx([0.8])
    assert "smile_probabilities" not in columns
    assert (columns["gender"][0], columns["hair_color"][0], columns["style"][0]) == ("female", "golden", 1)
    assert columns["gender_p"].tolist() == pytest.approx([0.7])
    assert columns["hair_color_p"].tolist() == pytest.approx([0.6])
    assert columns["hair_color_probabilities"][0].tolist() == pytest.approx([0.1, 0.2, 0.05, 0.05, 0.6])


def test_fs2k_metrics_are_those_of_scikit_learn_averaged_over_seven():
    task = get_task("fs2k")
    probabilities, targets = random_probabilities(task, 200), random_targets(task, 200)
    figures = task.metrics(probabilities, targets)
    by_head = []
    for column, head in enumerate(task.heads):
        truth, answer = targets[:, column], probabilities[head.name].argmax(1)
        by_head.append(f1_score(truth, answer, average="macro"))
        assert figures[f"f1_macro_{head.name}"] == pytest.approx(by_head[-1])
        assert figures[f"f1_weighted_{head.name}"] == pytest.approx(f1_score(truth, answer, average="weighted"))
        assert figures[f"balanced_accuracy_{head.name}"] == pytest.approx(balanced_accuracy_score(truth, answer))
        assert figures[f"accuracy_{head.name}"] == pytest.approx((truth == answer).mean())
    assert figures["f1_macro_mean"] == pytest.approx(np.mean(by_head))
    assert len(by_head) == 7


def test_an_attribute_without_labels_has_no_figures():
    task = get_task("fs2k")
    targets = random_targets(task, 20)
    perfect = one_hot(task, targets)
    targets[:, 0] = MISSING
    figures = task.metrics(perfect, targets)
    assert not any(name.endswith("_hair") for name in figures)
    assert figures["f1_macro_mean"] == figures["accuracy_mean"] == 1


def test_majority_answer_on_real_annotations_is_high_in_weighted_and_low_in_macro_f1():
    if not FS2K.exists():
        pytest.skip(f"no FS2K annotations at {FS2K}")
    task = get_task("fs2k")
    labels = [from_official(record) for record in json.loads(FS2K.read_text())]
    targets = task.encode_labels({name: [row[name] for row in labels] for name in task.label_columns})
    figures = task.baseline_metrics(targets, targets)
    assert figures["accuracy_hair"] == pytest.approx(1010 / 1058)
    assert figures["f1_weighted_hair"] > 0.9
    assert figures["f1_macro_hair"] < 0.5
    assert figures["balanced_accuracy_hair"] == 0.5


# --- a third task is one new file


TOY = '''
"""A toy task: is the crop bright, and which channel is strongest."""

from models.tasks.base import Head
from models.tasks.classification import ClassificationTask


class Toy(ClassificationTask):
    name = "toy"
    description = "Tells bright crops from dark ones."
    limits = ("A toy.",)
    heads = (Head(name="bright", classes=(False, True)), Head(name="channel", classes=("red", "green", "blue")))


TASK = Toy()
'''


def test_a_third_task_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.py").write_text(TOY)
    monkeypatch.setattr(models.tasks, "__path__", [*models.tasks.__path__, str(tmp_path / "tasks")])
    try:
        task = get_task("toy")
        rng = np.random.default_rng(0)
        bright, channel = rng.integers(0, 2, 64), rng.integers(0, 3, 64)
        crops = (60 * bright[:, None, None, None] + rng.integers(0, 60, (64, CROP_SIZE, CROP_SIZE, 3))).astype(np.uint8)
        crops[np.arange(64), :, :, channel] += 120
        targets = torch.from_numpy(
            task.encode_labels({"bright": bright == 1, "channel": np.array(task.heads[1].classes)[channel]})
        )

        torch.manual_seed(0)
        manifest = small_manifest("toy")
        network = build_network(manifest.backbone, task.heads, input_size=INPUT_SIZE)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        images = to_input(crops, InputConfig(size=INPUT_SIZE))
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = task.loss(network(images), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 10

        # Many steps of one batch leave batch norm's running averages behind: let them catch up.
        with torch.no_grad():
            for _ in range(40):
                network(images)
        save_scorer(tmp_path / "scorer", network, manifest)
        predictions = Predictor(load_scorer(tmp_path / "scorer"), device="cpu").predict([crops[:10], crops[10:]])
        answered = {name: predictions[0].faces[name] + predictions[1].faces[name] for name in task.label_columns}
        assert np.mean(np.array(answered["bright"]) == bright) > 0.9
        assert np.mean(np.array(answered["channel"]) == np.array(task.heads[1].classes)[channel]) > 0.9
        assert "# toy scorer" in (tmp_path / "scorer" / "MODEL_CARD.md").read_text()
    finally:
        sys.modules.pop("models.tasks.toy", None)
        if hasattr(models.tasks, "toy"):
            del models.tasks.toy


def test_attractiveness_loss_is_the_formula_over_known_rows():
    task = get_task("attractiveness")
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([[0], [39], [MISSING], [17]])
    rows = []
    for row in (0, 1, 3):
        label = targets[row, 0].item()
        weights = [math.exp(-0.5 * ((k - label) / 3.0) ** 2) for k in range(40)]
        log_p = torch.log_softmax(logits[row], 0)
        cross_entropy = -sum(w / sum(weights) * log_p[k].item() for k, w in enumerate(weights))
        expected_score = sum(math.exp(log_p[k].item()) * (60 + k) for k in range(40))
        rows.append(cross_entropy + abs(expected_score - (60 + label)))
    assert task.loss({"score": logits}, targets).item() == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_attractiveness_loss_forgives_a_near_miss_more_than_a_far_one():
    task = get_task("attractiveness")
    targets = torch.tensor([[20]])
    losses = [task.loss({"score": 8.0 * torch.eye(40)[[k]]}, targets).item() for k in (20, 21, 25, 39)]
    assert losses == sorted(losses)


@pytest.mark.parametrize("kind", ["label_distribution", "mean_variance", "cross_entropy"])
def test_a_loss_under_autocast_is_computed_in_full_precision(kind: str) -> None:
    task = get_task("attractiveness")
    logits = {"score": 3 * torch.randn(64, 40, generator=torch.Generator().manual_seed(0))}
    targets = torch.arange(64)[:, None] % 40
    exact = task.loss(logits, targets, kind=kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert task.loss(logits, targets, kind=kind).item() == pytest.approx(exact.item(), rel=1e-6)
