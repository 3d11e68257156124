import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from models.calibration import Calibration, Interval
from models.predictor import Predictor
from models.transforms import to_input
from tests.unit.scorers import CROP_SIZE, small_scorer

CALIBRATION = Calibration(
    temperatures={"score": 2.0}, intervals={"score": Interval(half_width=4.5, level=0.9, num_rows=20)}
)
NONE = np.empty((0, CROP_SIZE, CROP_SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    root = tmp_path_factory.mktemp("scorers")
    return {
        "attractiveness": small_scorer(root / "attractiveness", "attractiveness", CALIBRATION),
        "fs2k": small_scorer(root / "fs2k", "fs2k"),
    }


@pytest.fixture(params=["attractiveness", "fs2k"])
def predictor(request, scorers):
    return Predictor(scorers[request.param], device="cpu", batch_size=8)


def random_crops(num_crops, seed=0):
    """Crops that differ in colour and texture, so that random weights answer them differently."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (num_crops, 1, 1, 3))
    return (base + rng.integers(0, 56, (num_crops, CROP_SIZE, CROP_SIZE, 3))).astype(np.uint8)


def assert_same(actual, expected):
    """Equal columns, up to float rounding."""
    assert list(actual) == list(expected)
    for name, wanted in expected.items():
        if np.asarray(wanted).dtype.kind == "f":
            np.testing.assert_allclose(actual[name], wanted, atol=1e-5, rtol=1e-5, err_msg=name)
        else:
            assert actual[name] == wanted, name


def test_probabilities_are_those_of_network_and_calibration(scorers):
    crops = random_crops(5)
    for scorer in scorers.values():
        p = Predictor(scorer, device="cpu").probabilities(crops)
        with torch.inference_mode():
            logits = scorer.network(to_input(crops, scorer.manifest.input))
        for head in scorer.task.heads:
            temperature = scorer.manifest.calibration.temperatures.get(head.name, 1.0)
            expected = torch.softmax(logits[head.name] / temperature, 1).numpy()
            assert p[head.name].dtype == np.float32
            np.testing.assert_allclose(p[head.name], expected, atol=1e-6)
            np.testing.assert_allclose(p[head.name].sum(1), 1, atol=1e-5)


def test_different_crops_get_different_answers(predictor):
    for p in predictor.probabilities(random_crops(4)).values():
        assert np.ptp(p, axis=0).max() > 0.01


def test_no_crops_have_no_probabilities(predictor):
    p = predictor.probabilities(NONE)
    assert {name: values.shape for name, values in p.items()} == {
        head.name: (0, len(head.classes)) for head in predictor.task.heads
    }


def test_the_size_of_batches_does_not_change_the_numbers(scorers):
    crops = random_crops(13)
    for scorer in scorers.values():
        whole = Predictor(scorer, device="cpu", batch_size=64).probabilities(crops)
        for batch_size in (1, 5, 13):
            parts = Predictor(scorer, device="cpu", batch_size=batch_size).probabilities(crops)
            for name in whole:
                np.testing.assert_allclose(parts[name], whole[name], atol=1e-5)


@settings(deadline=None, max_examples=12)
@given(counts=st.lists(st.integers(0, 5), max_size=6), seed=st.integers(0, 100))
def test_a_video_gets_the_same_numbers_alone_and_among_others(scorers, counts, seed):
    for scorer in scorers.values():
        predictor = Predictor(scorer, device="cpu", batch_size=4)
        videos = [random_crops(count, seed * 10 + index) for index, count in enumerate(counts)]
        together = predictor.predict(videos)
        assert len(together) == len(videos)
        for video, prediction in zip(videos, together, strict=True):
            (alone,) = predictor.predict([video])
            assert_same(prediction.faces, alone.faces)
            assert (prediction.columns is None) == (len(video) == 0)
            if prediction.columns is not None:
                assert_same(prediction.columns, alone.columns)


def test_a_video_is_judged_by_the_mean_of_its_faces_probabilities(predictor):
    crops = random_crops(3)
    (prediction,) = predictor.predict([crops])
    means = {name: p.mean(0, keepdims=True) for name, p in predictor.probabilities(crops).items()}
    columns = predictor.task.columns(means, predictor.scorer.manifest.calibration.half_widths)
    assert_same(prediction.columns, {name: np.asarray(values).tolist()[0] for name, values in columns.items()})


def test_the_order_of_faces_and_videos_is_kept(predictor):
    videos = [random_crops(2, 1), NONE, random_crops(3, 2)]
    forward = predictor.predict(videos)
    backward = predictor.predict([video[::-1] for video in reversed(videos)])
    assert forward[1].columns is None
    assert all(values == [] for values in forward[1].faces.values())
    for index, video in enumerate(videos):
        assert all(len(values) == len(video) for values in forward[index].faces.values())
        assert_same(forward[index].faces, {k: v[::-1] for k, v in backward[2 - index].faces.items()})


def test_videos_without_faces_and_no_videos_at_all(predictor):
    assert predictor.predict([]) == []
    assert [prediction.columns for prediction in predictor.predict([NONE, NONE])] == [None, None]


def test_predictions_are_plain_values_that_fit_the_output_schema(predictor):
    predictions = predictor.predict([random_crops(2), random_crops(1, seed=1)])
    schema = predictor.task.output_schema()
    table = pa.Table.from_pylist([prediction.columns for prediction in predictions], schema=schema)
    assert table.num_rows == 2
    faces = pa.table(predictions[0].faces, schema=schema)
    assert faces.num_rows == 2
    for value in predictions[0].columns.values():
        assert type(value) in (bool, int, float, str, list)


def test_intervals_are_around_the_score_and_within_the_scale(scorers):
    (prediction,) = Predictor(scorers["attractiveness"], device="cpu").predict([random_crops(3)])
    columns = prediction.columns
    assert columns["score_low"] == pytest.approx(max(60, columns["score"] - 4.5), abs=1e-4)
    assert columns["score_high"] == pytest.approx(min(99, columns["score"] + 4.5), abs=1e-4)


def test_read_only_crops_are_taken_without_a_warning(predictor):
    crops = random_crops(3)
    expected = predictor.probabilities(crops)
    crops.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, p in predictor.probabilities(crops).items():
            np.testing.assert_array_equal(p, expected[name])


def test_bfloat16_is_the_network_under_autocast_and_the_softmax_in_float32(scorers):
    # No bound on the distance to float32: these random weights amplify rounding as trained ones do not.
    crops = random_crops(6)
    for scorer in scorers.values():
        exact = Predictor(scorer, device="cpu").probabilities(crops)
        rounded = Predictor(scorer, device="cpu", precision="bfloat16").probabilities(crops)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = scorer.network(to_input(crops, scorer.manifest.input))
        expected = scorer.manifest.calibration.probabilities(logits)
        for name, p in rounded.items():
            assert p.dtype == np.float32
            np.testing.assert_allclose(p, expected[name], atol=1e-6)
            np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
            assert not np.array_equal(p, exact[name])


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((1, CROP_SIZE + 1, CROP_SIZE + 1, 3), np.uint8),
        np.zeros((1, CROP_SIZE, CROP_SIZE, 3), np.float32),
        np.zeros((1, 3, CROP_SIZE, CROP_SIZE), np.uint8),
        np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8),
    ],
)
def test_other_crops_than_the_scorers_are_refused(predictor, crops):
    with pytest.raises(UserError, match=rf"this scorer takes uint8\[n, {CROP_SIZE}, {CROP_SIZE}, 3\]"):
        predictor.predict([random_crops(1), crops])
    with pytest.raises(UserError, match="own face policy"):
        predictor.probabilities(crops)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "float16"}, "precision 'float16' is neither"),
    ],
)
def test_unusable_options_are_refused(scorers, options, message):
    with pytest.raises(UserError, match=message):
        Predictor(scorers["fs2k"], **options)
