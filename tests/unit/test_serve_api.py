"""The service's answers: the same numbers as everywhere, and who answered."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from models.faces.detect import build_detector
from models.faces.extract import extract_faces
from models.predictor import Predictor
from models.video.limits import DecodeLimits
from models.video.sandbox import DecodeSandbox
from serve.client import Client, Retries
from serve.following import SelfTestFailed, self_test
from serve.schemas import ScoreAnswer
from serve.scoring import Wish
from tests.serving import FACE, REEL, TWO, Service
from tests.unit.scorers import small_scorer

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips"


def directly(path: Path, predictor: Predictor) -> tuple[Any, Any]:
    """Faces and prediction of a file as jobs make them."""
    manifest = predictor.scorer.manifest
    with DecodeSandbox() as sandbox:
        sampled = sandbox.decode(str(path), manifest.frame_policy, DecodeLimits()).sampled
    crops = extract_faces(sampled.frames, manifest.face_policy, build_detector(manifest.face_policy))
    return crops, predictor.predict([crops.crops])[0]


@pytest.mark.parametrize(
    "path", [FACE, REEL, CLIPS / "multi_face.jpg", CLIPS / "single_face.mp4"], ids=lambda path: path.name
)
def test_numbers_are_those_of_the_predictor(service: Service, client: Client, path: Path) -> None:
    if not path.exists():
        pytest.skip("the clips are not on this machine")
    answer = (client.score_video if path.suffix == ".mp4" else client.score_image)(path)
    for task, predictor in service.scorers.items():
        crops, prediction = directly(path, predictor)
        found = answer.tasks[task]
        assert found.model.digest == predictor.scorer.digest
        assert found.num_faces == len(found.faces) == len(crops.crops) > 0
        assert found.values is not None
        assert prediction.columns is not None
        assert found.values.keys() == prediction.columns.keys()
        for name, value in prediction.columns.items():
            assert found.values[name] == pytest.approx(value, abs=1e-4), name
        for number, face in enumerate(found.faces):
            assert face.frame_index == crops.frame_index[number]
            for name, values in prediction.faces.items():
                assert face.values[name] == pytest.approx(values[number], abs=1e-4), name


def test_boxes_are_pixels_of_the_source(client: Client) -> None:
    answer = client.score_image(TWO, tasks=["attractiveness"])
    (face,) = answer.tasks["attractiveness"].faces
    left, top, right, bottom = face.box
    assert (answer.width, answer.height) == (800, 400)
    assert 0 <= left < right <= 800
    assert bottom - top > 100
    assert face.landmarks is not None
    assert all(left < x < right and top < y < bottom for x, y in face.landmarks)
    assert face.faces_in_frame == 2
    assert answer.tasks.keys() == {"attractiveness"}


def test_a_form_a_body_and_an_object_give_one_answer(service: Service, client: Client) -> None:
    by_body = client.score_image(FACE)
    by_uri = client.score_image(uri=str(FACE))
    with FACE.open("rb") as file:
        by_form = ScoreAnswer.model_validate(
            httpx.post(f"{service.url}/v1/images:score", files={"file": ("a.jpg", file)}).json()
        )
    for other in (by_uri, by_form):
        assert {task: item.values for task, item in other.tasks.items()} == {
            task: item.values for task, item in by_body.tasks.items()
        }


def test_abstains_with_a_reason(service: Service, client: Client) -> None:
    import io

    from PIL import Image

    def white(size: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), "white").save(buffer, "PNG")
        return buffer.getvalue()

    nothing = client.score_image(white(200)).tasks["fs2k"]
    assert nothing.values is None
    assert nothing.abstention is not None
    assert nothing.abstention.reason == "no_face"

    buffer = io.BytesIO()
    with Image.open(FACE) as image:
        image.resize((70, 70)).save(buffer, "PNG")
    small = client.score_image(buffer.getvalue()).tasks["fs2k"].abstention
    assert small is not None
    assert (small.reason, "too_small" in small.detail) == ("low_quality", True)

    several = client.score_image(TWO, several_people="abstain").tasks["fs2k"]
    assert several.values is None
    assert several.abstention is not None
    assert several.abstention.reason == "several_people"
    assert client.score_image(TWO).tasks["fs2k"].abstention is None
    assert client.score_image(FACE, several_people="abstain").tasks["fs2k"].abstention is None


def test_the_challenger_is_asked_by_name_and_by_share(service: Service, client: Client, tmp_path: Path) -> None:
    challenger = Predictor(small_scorer(tmp_path / "other", "fs2k", seed=5))
    service.use("fs2k", challenger, "2", "challenger")
    settings = service.engine.settings
    try:
        by_name = client.score_image(FACE, tasks=["fs2k"], model="challenger").tasks["fs2k"]
        assert (by_name.model.version, by_name.model.role) == ("2", "challenger")
        assert by_name.model.digest == challenger.scorer.digest
        by_header = httpx.post(
            f"{service.url}/v1/images:score?task=fs2k",
            content=FACE.read_bytes(),
            headers={"X-Facereel-Model": "challenger"},
        ).json()
        assert by_header["tasks"]["fs2k"]["model"]["version"] == "2"
        assert client.score_image(FACE).tasks["fs2k"].model.role == "champion"

        shared = settings.serving.model_copy(update={"challenger_share": 0.5})
        service.engine.settings = settings.model_copy(update={"serving": shared})
        roles = [service.engine.chosen(Wish(("fs2k",)), f"request-{number}")[0].role for number in range(400)]
        assert 150 < roles.count("challenger") < 250
        assert service.engine.chosen(Wish(("fs2k",)), "same")[0] is service.engine.chosen(Wish(("fs2k",)), "same")[0]
    finally:
        service.engine.settings = settings
        service.drop("fs2k")


def test_the_shadow_is_logged_and_not_answered(
    service: Service, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve import scoring

    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(scoring.log, "info", lambda message, extra: lines.append(extra | {"message": message}))
    service.use("fs2k", Predictor(small_scorer(tmp_path / "other", "fs2k", seed=5)), "2", "challenger")
    settings = service.engine.settings
    shadowed = settings.serving.model_copy(update={"shadow_share": 1.0})
    service.engine.settings = settings.model_copy(update={"serving": shadowed})
    try:
        answer = client.score_image(FACE, tasks=["fs2k"])
        deadline = time.monotonic() + 60
        while not any(line["message"] == "shadow" for line in lines) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        service.engine.settings = settings
        service.drop("fs2k")
    (shadow,) = [line for line in lines if line["message"] == "shadow"]
    assert answer.tasks["fs2k"].model.version == shadow["champion"]["version"] == "1"
    assert shadow["challenger"]["version"] == "2"
    assert shadow["request_id"] == answer.request_id
    assert shadow["challenger"]["values"].keys() == shadow["champion"]["values"].keys()


def test_a_change_of_scorer_loses_no_request(service: Service, tmp_path: Path) -> None:
    """Changes without a pause under load: every answer is whole and names the scorer that made its numbers."""
    predictors = [Predictor(small_scorer(tmp_path / str(seed), "fs2k", seed=seed)) for seed in (0, 1)]
    crops, _ = directly(FACE, predictors[0])
    truth = {predictor.scorer.digest: predictor.predict([crops.crops])[0].columns for predictor in predictors}
    ended = threading.Event()

    def change() -> None:
        number = 0
        while not ended.wait(0.002):
            number += 1
            service.use("fs2k", predictors[number % 2], str(number))

    changer = threading.Thread(target=change)
    changer.start()
    try:
        with Client(service.url, retries=Retries(most=1)) as client, ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.score_image(FACE, tasks=["fs2k"]).tasks["fs2k"], range(60)))
    finally:
        ended.set()
        changer.join()
        service.use("fs2k", service.scorers["fs2k"], "1")
    assert len({answer.model.version for answer in answers}) > 5
    assert {answer.model.digest for answer in answers} == set(truth)
    for answer in answers:
        assert answer.values is not None
        expected = truth[answer.model.digest]
        assert expected is not None
        for name in ("smile_p", "hair_p", "gender_p"):
            assert answer.values[name] == pytest.approx(expected[name], abs=1e-4)


def test_a_scorer_that_does_not_answer_as_one_is_refused(tmp_path: Path) -> None:
    import torch

    predictor = Predictor(small_scorer(tmp_path / "a", "fs2k"))
    self_test(predictor)
    with torch.no_grad():
        predictor._network.classifier.weight.fill_(float("nan"))
    with pytest.raises(SelfTestFailed, match="no probabilities"):
        self_test(predictor)


def test_the_inference_protocol_serves_a_foreign_client(service: Service) -> None:
    predictor = service.scorers["attractiveness"]
    crops = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    expected = predictor.predict([crops])[0].faces
    client = triton.InferenceServerClient(service.url.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("attractiveness")
        metadata = client.get_model_metadata("attractiveness")
        assert metadata["inputs"] == [{"name": "crops", "datatype": "UINT8", "shape": [-1, 40, 40, 3]}]
        for binary in (True, False):
            tensor = triton.InferInput("crops", list(crops.shape), "UINT8")
            tensor.set_data_from_numpy(crops, binary_data=binary)
            wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("score", "score_distribution")]
            result = client.infer("attractiveness", [tensor], outputs=wanted, request_id="7")
            assert result.get_response()["model_version"] == "1"
            np.testing.assert_allclose(result.as_numpy("score"), expected["score"], atol=1e-3)
            assert result.as_numpy("score_distribution").shape == (3, 40)
        tensor.set_data_from_numpy(crops, binary_data=True)
        result = client.infer("fs2k", [tensor])
        attributes = service.scorers["fs2k"].predict([crops])[0].faces
        assert result.as_numpy("smile").tolist() == attributes["smile"]
        assert [item.decode() for item in result.as_numpy("gender").tolist()] == attributes["gender"]
    finally:
        client.close()
