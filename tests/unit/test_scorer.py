import json
import os
import pickle
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.errors import UserError
from models.calibration import Calibration, Interval
from models.scorer import ScorerError, ScorerManifest, load_scorer, read_digest, save_scorer
from tests.unit.scorers import BACKBONE, INPUT_SIZE, sign_again, small_manifest, small_network

CALIBRATION = Calibration(
    temperatures={"score": 1.5}, intervals={"score": Interval(half_width=4.5, level=0.9, num_rows=20)}
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scorers") / "saved"
    digest = save_scorer(directory, small_network("attractiveness"), small_manifest("attractiveness", CALIBRATION))
    return directory, digest


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


def test_what_is_saved_is_what_is_loaded(saved):
    directory, digest = saved
    scorer = load_scorer(directory, expected_digest=digest)
    assert scorer.digest == digest == read_digest(directory)
    assert scorer.manifest == small_manifest("attractiveness", CALIBRATION)
    assert scorer.task.name == "attractiveness"
    assert not scorer.network.training
    images = torch.rand(2, 3, INPUT_SIZE, INPUT_SIZE)
    with torch.inference_mode():
        expected = small_network("attractiveness")(images)
        assert torch.equal(scorer.network(images)["score"], expected["score"])


def test_loading_leaves_the_random_state_alone(saved):
    state = torch.random.get_rng_state()
    load_scorer(saved[0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_digest_is_what_coreutils_compute(saved):
    directory, digest = saved
    assert sorted(path.name for path in directory.iterdir()) == [
        "DIGEST",
        "MODEL_CARD.md",
        "scorer.json",
        "weights.safetensors",
    ]
    command = "sha256sum -c --quiet DIGEST && sha256sum weights.safetensors scorer.json | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=directory, capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == digest


def test_equal_networks_have_equal_digests_and_other_weights_another(saved, tmp_path):
    manifest = small_manifest("attractiveness", CALIBRATION)
    network = small_network("attractiveness").to(memory_format=torch.channels_last)
    assert save_scorer(tmp_path / "same", network, manifest) == saved[1]
    assert save_scorer(tmp_path / "other", small_network("attractiveness", seed=1), manifest) != saved[1]
    other = manifest.model_copy(update={"dataset_fingerprint": "other"})
    assert save_scorer(tmp_path / "data", network, other) != saved[1]


# --- tampering


def flip_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def regions(path):
    """Positions in every region of a weights file: length, header, and the ends of each tensor."""
    data = path.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    start = 8 + header_bytes
    offsets = [entry["data_offsets"] for name, entry in json.loads(data[8:start]).items() if name != "__metadata__"]
    tensors = {start + offset for first, end in offsets for offset in (first, (first + end) // 2, end - 1)}
    return [*range(8), *range(8, start, start // 20), start - 1, *sorted(tensors)[:: len(tensors) // 60]]


def test_a_flipped_byte_in_any_region_of_the_weights_is_refused(copy):
    path = copy / "weights.safetensors"
    positions = regions(path)
    assert len(positions) > 60
    for position in positions:
        flip_byte(path, position)
        with pytest.raises(ScorerError, match=r"weights\.safetensors is not the file that was saved"):
            load_scorer(copy)
        flip_byte(path, position)
    load_scorer(copy)


def test_a_flipped_byte_anywhere_in_the_manifest_is_refused(copy):
    path = copy / "scorer.json"
    for position in range(0, path.stat().st_size, 41):
        flip_byte(path, position)
        with pytest.raises(ScorerError, match=r"scorer\.json is not the file that was saved"):
            load_scorer(copy)
        flip_byte(path, position)
    load_scorer(copy)


def test_a_flipped_byte_anywhere_in_the_digest_file_is_refused(copy):
    path = copy / "DIGEST"
    for position in range(path.stat().st_size):
        flip_byte(path, position)
        with pytest.raises(ScorerError, match="DIGEST"):
            load_scorer(copy)
        flip_byte(path, position)
    load_scorer(copy)


def test_a_digest_file_with_the_right_lines_in_another_form_is_refused(copy):
    path = copy / "DIGEST"
    original = path.read_bytes()
    for changed in (original + b"\n", b"".join(reversed(original.splitlines(keepends=True))), original * 2):
        path.write_bytes(changed)
        with pytest.raises(ScorerError, match="DIGEST is not what sha256sum"):
            load_scorer(copy)


@pytest.mark.parametrize("name", ["weights.safetensors", "scorer.json", "DIGEST"])
def test_truncated_and_missing_files_are_named(copy, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ScorerError, match=name):
        load_scorer(copy)
    path.unlink()
    with pytest.raises(ScorerError, match=f"there is no file {name}"):
        load_scorer(copy)


def test_a_directory_that_does_not_exist_is_no_scorer(tmp_path):
    with pytest.raises(ScorerError, match="absent is not a scorer directory"):
        load_scorer(tmp_path / "absent")


def test_files_that_agree_with_each_other_but_not_with_the_registry_are_refused(copy, saved):
    text = (copy / "scorer.json").read_text()
    (copy / "scorer.json").write_text(text.replace('"dataset_fingerprint": "0123abcd"', '"dataset_fingerprint": "x"'))
    changed = sign_again(copy)
    assert changed != saved[1]
    assert load_scorer(copy).digest == changed
    with pytest.raises(ScorerError, match=f"its digest is {changed}, expected was {saved[1]}"):
        load_scorer(copy, expected_digest=saved[1])


# --- files that agree with DIGEST but say what this code does not understand


def edit_manifest(directory, change):
    manifest = json.loads((directory / "scorer.json").read_text())
    change(manifest)
    (directory / "scorer.json").write_text(json.dumps(manifest))
    sign_again(directory)


def setting(*path, to):
    def change(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("licence", to="none"), "licence: Extra inputs are not permitted"),
        (setting("input", "crop", to=1), "input.crop: Extra inputs are not permitted"),
        (setting("face_policy", "mirror", to=True), "face_policy.mirror: Extra inputs"),
        (setting("frame_policy", "skip", to=1), "frame_policy.skip: Extra inputs"),
        (setting("heads", 0, "weight", to=1), "weight: Extra inputs"),
        (setting("calibration", "intervals", "score", "p", to=1), "calibration.intervals.score.p: Extra inputs"),
        (setting("training", "gpu", to="x"), "training.gpu: Extra inputs"),
        (setting("format_version", to=2), "format_version: Input should be 1"),
        (setting("dtype", to="float16"), "dtype: Input should be 'float32'"),
        (setting("input", "std", to=[0, 1, 1]), "input.std.0: Input should be greater than 0"),
        (setting("calibration", "temperatures", "score", to=0), "temperatures.score: Input should be greater than 0"),
        (setting("calibration", "temperatures", to={"smile": 1.0}), "calibration: temperature of 'smile'"),
        (setting("metrics", "mae", to=float("nan")), "metrics.mae: Input should be a finite number"),
        (setting("task", to="age"), "there is no task 'age'"),
        (setting("task", to="fs2k"), "its heads are not those of task 'fs2k'.*score"),
        (setting("heads", 0, "classes", to=list(range(61, 101))), "its heads are not those of task 'attractiveness'"),
        (setting("heads", 0, "classes", to=[str(k) for k in range(60, 100)]), "its heads are not those of task"),
        (setting("backbone", to="resnet_18"), "no backbone 'resnet_18'.*resnet18"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(copy, change, message):
    edit_manifest(copy, change)
    with pytest.raises(ScorerError, match=message) as caught:
        load_scorer(copy)
    assert "scorer.json" in str(caught.value)


@pytest.mark.parametrize(
    "name", sorted(name for name, field in ScorerManifest.model_fields.items() if field.is_required())
)
def test_a_manifest_without_a_field_is_refused(copy, name):
    edit_manifest(copy, lambda manifest: manifest.pop(name))
    with pytest.raises(ScorerError, match=rf"scorer\.json.*{name}: Field required"):
        load_scorer(copy)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_not_json_of_an_object_is_refused(copy, data):
    (copy / "scorer.json").write_bytes(data)
    sign_again(copy)
    with pytest.raises(ScorerError, match=r"scorer\.json cannot be understood"):
        load_scorer(copy)


def edit_weights(directory, change):
    tensors = load_file(directory / "weights.safetensors")
    change(tensors)
    save_file(tensors, directory / "weights.safetensors")
    sign_again(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.bias"), "classifier.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), f"extra is not a tensor of {BACKBONE}"),
        (
            lambda t: t.update({"classifier.bias": torch.zeros(41)}),
            r"classifier.bias has shape \[41\] instead of \[40\]",
        ),
        (lambda t: t.update({"classifier.bias": torch.zeros(40).half()}), "dtype float16 instead of float32"),
        (lambda t: t.clear(), "is missing.*more"),
    ],
)
def test_weights_that_do_not_fit_the_manifest_are_refused(copy, change, message):
    edit_weights(copy, change)
    with pytest.raises(ScorerError, match=message) as caught:
        load_scorer(copy)
    assert "weights.safetensors" in str(caught.value)


def test_weights_of_another_backbone_are_refused(copy):
    edit_manifest(copy, setting("backbone", to="mobilenet_v3_small"))
    with pytest.raises(ScorerError, match=r"weights\.safetensors does not fit the manifest"):
        load_scorer(copy)


class Bomb:
    def __reduce__(self):
        return (os._exit, (3,))


@pytest.mark.parametrize("data", [pickle.dumps(Bomb()), b"", b"\xff" * 100, b"\x02" + bytes(7) + b"{}"])
def test_weights_that_are_no_safetensors_are_refused_and_never_run(copy, data):
    (copy / "weights.safetensors").write_bytes(data)
    sign_again(copy)
    with pytest.raises(ScorerError, match=r"weights\.safetensors"):
        load_scorer(copy)


# --- saving


def test_an_existing_directory_is_never_overwritten(saved):
    with pytest.raises(UserError, match="never overwritten"):
        save_scorer(saved[0], small_network("attractiveness"), small_manifest("attractiveness"))
    assert read_digest(saved[0]) == saved[1]


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_scorer(tmp_path / "scorer", small_network("fs2k"), small_manifest("fs2k"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_network_is_not_saved(tmp_path, value):
    network = small_network("fs2k")
    network.classifier.bias.data[3] = value
    with pytest.raises(UserError, match=r"'classifier\.bias' is not finite: the training diverged"):
        save_scorer(tmp_path / "scorer", network, small_manifest("fs2k"))
    assert not (tmp_path / "scorer").exists()


def test_a_network_for_other_heads_than_the_manifest_is_a_bug(tmp_path):
    with pytest.raises(AssertionError, match="other heads"):
        save_scorer(tmp_path / "scorer", small_network("fs2k"), small_manifest("attractiveness"))


def test_metrics_that_are_not_numbers_are_refused_before_saving():
    with pytest.raises(ValueError, match="finite"):
        ScorerManifest.model_validate(small_manifest("fs2k").model_dump() | {"metrics": {"mae": float("nan")}})


def test_the_card_says_what_it_is_and_how_good_beside_the_baseline(saved):
    directory, digest = saved
    card = (directory / "MODEL_CARD.md").read_text()
    assert card.startswith("# attractiveness scorer\n")
    for text in (digest, BACKBONE, "| **mae** | 0.5000 | 0.2500 |", "0123abcd", "lr 0.001", "subjective rating"):
        assert text in card
    assert "Minors are excluded" in card
    assert "interval of score: ± 4.50 for 90% of faces (from 20 crops)" in card
