"""The service's answers: the same numbers as everywhere, who answered, who may ask, and what happens under load."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from infra.errors import UserError
from models.faces.detect import build_detector
from models.faces.extract import extract_faces
from models.predictor import Predictor, VideoPrediction
from models.video.limits import DecodeLimits
from models.video.sandbox import DecodeSandbox
from serve.admission import Admission
from serve.batching import Batcher, Item
from serve.client import AsyncClient, Client, Retries, ServiceError
from serve.faces import FaceReader
from serve.following import SelfTestFailed, self_test
from serve.problems import Problem
from serve.schemas import ScoreAnswer
from serve.security import Gate, add_key, is_loopback, read_keys
from tests.serving import FakeJobs, Service, running_service
from tests.unit.scorers import small_scorer

SAMPLES = Path(__file__).parents[2] / "serve" / "web" / "samples"
FACE, TWO, REEL = (SAMPLES / name for name in ("face.jpg", "two-faces.jpg", "reel.mp4"))
CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    jobs = FakeJobs()
    with running_service(folder, jobs, batches=str(folder / "batches"), buckets=(str(SAMPLES),)) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, retries=Retries(most=1)) as one:
        yield one


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
        roles = [service.engine.chosen(_wish("fs2k"), f"request-{number}")[0].role for number in range(400)]
        assert 150 < roles.count("challenger") < 250
        assert service.engine.chosen(_wish("fs2k"), "same")[0] is service.engine.chosen(_wish("fs2k"), "same")[0]
    finally:
        service.engine.settings = settings
        service.drop("fs2k")


def _wish(task: str) -> Any:
    from serve.scoring import Wish

    return Wish((task,))


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
        deadline = time.monotonic() + 10
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


# Who may ask.


def test_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = add_key(path, "team-a")
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert list(read_keys(path)) == ["team-a"]
    with pytest.raises(UserError, match="already"):
        add_key(path, "team-a")
    with pytest.raises(UserError, match="no name"):
        add_key(path, "a b")
    path.write_text("team-a secret\n")
    with pytest.raises(UserError, match="line 1"):
        read_keys(path)
    with pytest.raises(UserError, match="no rate"):
        Gate(None, "often")


def test_only_keys_are_let_in(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first = add_key(path, "first")
    with running_service(tmp_path, api_keys=str(path), rate="5/minute") as service:
        for headers in (
            {},
            {"X-API-Key": "frk_wrong"},
            {"Authorization": "Basic abc"},
            {"Authorization": f"Bearer {first}x"},
        ):
            refused = httpx.get(f"{service.url}/v1/service", headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        for path_ in ("/", "/healthz", "/readyz", "/web/page.js", "/v1/openapi.json"):
            assert httpx.get(service.url + path_).status_code == 200, path_
        with Client(service.url, first, retries=Retries(most=1)) as client:
            for _ in range(5):
                client.service()
            with pytest.raises(ServiceError, match="rate_limited") as error:
                client.service()
        assert error.value.status == 429
        second = add_key(path, "second")  # without a restart
        with Client(service.url, second, retries=Retries(most=1)) as client:
            client.service()
        path.write_text("broken")  # the keys of before stay
        with Client(service.url, second, retries=Retries(most=1)) as client:
            client.service()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        (None, False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str | None, expected: bool) -> None:
    assert is_loopback(host) is expected


# Under load.


def test_beyond_its_queue_it_refuses_at_once() -> None:
    async def story() -> None:
        admission = Admission(max_running=1, max_waiting=1, retry_after_s=7)
        leave = asyncio.Event()

        async def work() -> None:
            async with admission.slot():
                await leave.wait()

        running, waiting = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (admission.num_running, admission.num_waiting) == (1, 1)
        with pytest.raises(Problem) as refused:
            async with admission.slot():
                pass
        assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (429, "overloaded", 7)
        waiting.cancel()  # its client has left
        await asyncio.gather(waiting, return_exceptions=True)
        assert admission.num_waiting == 0
        leave.set()
        await running
        assert admission.num_running == 0
        admission.draining = True
        with pytest.raises(Problem, match="ending"):
            async with admission.slot():
                pass

    asyncio.run(story())


def test_overload_is_told_and_passes(tmp_path: Path) -> None:
    with running_service(tmp_path, max_running=1, max_waiting=1, retry_after_s=1) as service:
        data = FACE.read_bytes()

        def once(_: int) -> tuple[int, str | None]:
            response = httpx.post(f"{service.url}/v1/images:score", content=data, timeout=60)
            return response.status_code, response.headers.get("Retry-After")

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(once, range(24)))
        assert {status for status, _ in answers} == {200, 429}
        assert all(after == "1" for status, after in answers if status == 429)
        with Client(service.url) as patient, ThreadPoolExecutor(4) as pool:  # a client that waits as it is told
            found = list(pool.map(lambda _: patient.score_image(data, tasks=["fs2k"]), range(8)))
        assert len(found) == 8
        assert service.engine.admission.num_running == service.engine.admission.num_waiting == 0


def test_a_request_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with running_service(tmp_path, max_request_s=0.02) as service:
        response = httpx.post(f"{service.url}/v1/videos:score", content=REEL.read_bytes(), timeout=60)
        assert (response.status_code, response.json()["code"]) == (504, "timeout")
        assert service.engine.admission.num_running == 0


def test_a_cancelled_read_ends_its_decoder(service: Service, tmp_path: Path) -> None:
    from serve.uploads import Source

    async def story() -> None:
        reader = FaceReader(service.settings.storage, service.settings.serving, num_children=1)
        policies = service.engine.chosen(_wish("fs2k"), "")[0].policies
        slow = replace(policies, frames=policies.frames.model_copy(update={"every": 1, "limit": 60}))
        (sandbox,) = reader._sandboxes
        before = sandbox.child_pid
        task = asyncio.create_task(reader.read(Source("video", data=REEL.read_bytes()), (slow,)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        found = await reader.read(Source("video", data=REEL.read_bytes()), (policies,))
        assert len(found[policies].crops.crops) > 0
        assert sandbox.child_pid != before
        reader.close()

    asyncio.run(story())


def test_batches_form_while_one_is_computed() -> None:
    """What waits goes together; what is too large goes alone; who leaves or fails takes nobody along."""
    live: Any = object()
    sizes: list[list[int]] = []
    go = threading.Event()

    def predict(items: Sequence[Item]) -> list[VideoPrediction]:
        sizes.append([len(item.crops) for item in items])
        go.wait(10)
        if any(len(item.crops) == 13 for item in items):
            raise RuntimeError("unlucky")
        return [VideoPrediction({"n": len(item.crops)}, {}) for item in items]

    async def story() -> None:
        batcher = Batcher(predict, max_faces=8)

        def ask(num_faces: int) -> asyncio.Task[VideoPrediction]:
            return asyncio.create_task(batcher.predict(Item(live, np.empty((num_faces, 1, 1, 3), np.uint8))))

        first = ask(1)
        while not sizes:
            await asyncio.sleep(0.001)
        tasks = [ask(number) for number in (2, 3, 3, 4, 100, 13, 1)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        go.set()
        found = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert sizes == [[1], [2, 3], [4], [100], [13], [1]]
        assert isinstance(found[2], asyncio.CancelledError)
        assert isinstance(found[6], RuntimeError)
        answers = [one.columns["n"] for one in found if isinstance(one, VideoPrediction) and one.columns]
        assert answers == [1, 2, 3, 4, 100, 1]
        assert (await ask(5)).columns == {"n": 5}
        batcher.close()

    asyncio.run(story())


def test_more_crops_than_a_batch_are_answered(service: Service) -> None:
    crops = np.zeros((100, 40, 40, 3), np.uint8)
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        tensor = triton.InferInput("crops", list(crops.shape), "UINT8")
        tensor.set_data_from_numpy(crops)
        assert client.infer("fs2k", [tensor]).as_numpy("smile").shape == (100,)


# Batches.


def test_a_batch_and_its_key(service: Service, client: Client) -> None:
    jobs = service_jobs(service)
    batch = client.create_batch(str(SAMPLES), limit=2, idempotency_key="nightly")
    assert (batch.state, batch.counts, batch.tasks) == ("pending", None, ["attractiveness", "fs2k"])
    assert "-m ray_jobs score" in jobs.commands[batch.id]
    assert "--limit 2" in jobs.commands[batch.id]
    assert f"--within {SAMPLES}" in jobs.commands[batch.id]
    assert not any("SECRET" in name for name in jobs.env)
    again = client.create_batch(str(SAMPLES), limit=2, idempotency_key="nightly")
    assert again.id == batch.id
    with pytest.raises(ServiceError, match="idempotency_conflict"):
        client.create_batch(str(SAMPLES), limit=3, idempotency_key="nightly")
    other = client.create_batch(str(SAMPLES))
    assert other.id != batch.id

    jobs.jobs[batch.id] = ("RUNNING", "")
    run = {
        "state": "running",
        "started_at": "2026-01-01T00:00:00Z",
        "num_due": 9,
        "outcome": {"scored": 3, "no_face": 1, "quarantined": {"corrupt": 2}},
    }
    folder = Path(batch.tables) / "_runs" / "r1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run))
    counts = client.get_batch(batch.id).counts
    assert counts is not None
    assert (counts.due, counts.done, counts.scored, counts.quarantined) == (9, 6, 3, 2)
    assert client.stop_batch(batch.id).state == "stopped"
    assert client.stop_batch(batch.id).state == "stopped"  # twice does nothing

    jobs.jobs.pop(batch.id)  # the cluster is gone: what the records say counts
    assert client.get_batch(batch.id).state == "stopped"
    (folder / "run.json").write_text(json.dumps(run | {"state": "done"}))
    assert client.get_batch(batch.id).state == "succeeded"
    assert client.create_batch(str(SAMPLES), limit=2, idempotency_key="nightly").state == "succeeded"
    assert batch.id not in jobs.jobs  # done is not done again

    jobs.jobs.pop(other.id)
    assert client.get_batch(other.id).state == "pending"  # its job may be on its way
    record = Path(other.tables).parent / "batch.json"
    record.write_text(re.sub(r'"created_at": "[^"]*"', '"created_at": "2026-01-01T00:00:00Z"', record.read_text()))
    assert client.get_batch(other.id).state == "lost"
    seen: list[str] = []
    jobs.jobs[other.id] = ("SUCCEEDED", "")
    assert client.wait_for_batch(other.id, progress=lambda found: seen.append(found.state)).state == "succeeded"
    assert seen == ["succeeded"]


def test_a_list_of_videos_becomes_a_catalog(service: Service, client: Client) -> None:
    batch = client.create_batch(videos=[{"video_id": "a", "uri": str(REEL)}, {"video_id": "b", "uri": str(REEL)}])
    rows = [json.loads(line) for line in Path(batch.catalog).read_text().splitlines()]
    assert [row["video_id"] for row in rows] == ["a", "b"]
    with pytest.raises(ServiceError, match="twice"):
        client.create_batch(videos=[{"video_id": "a", "uri": str(REEL)}] * 2)
    with pytest.raises(ServiceError, match=r"videos\.0\.uri"):
        client.create_batch(videos=[{"video_id": "a", "uri": "/etc/passwd"}])


def test_a_cluster_that_is_away_loses_no_batch(service: Service, client: Client) -> None:
    jobs = service_jobs(service)
    jobs.down = True
    with pytest.raises(ServiceError, match="cluster_unavailable"):
        client.create_batch(str(SAMPLES), idempotency_key="later")
    jobs.down = False
    batch = client.create_batch(str(SAMPLES), idempotency_key="later")  # the record was there, its job was not
    assert batch.state == "pending"
    assert batch.id in jobs.jobs


def service_jobs(service: Service) -> FakeJobs:
    assert isinstance(service.jobs, FakeJobs)
    return service.jobs


def test_run_records_are_read_as_jobs_write_them() -> None:
    from ray_jobs.outcome import Outcome
    from ray_jobs.run_record import RunRecord
    from ray_jobs.score_table import RUNS
    from serve.batches import RUN_FOLDER, _Run

    assert RUN_FOLDER == RUNS
    record = RunRecord(run_id="r", catalog="c", policy="p", scorers={}, num_due=5, outcome=Outcome(scored=2, no_face=1))
    record.outcome.quarantined["corrupt"] = 1
    found = _Run.model_validate_json(record.model_dump_json())
    assert (found.num_due, found.outcome.scored, found.outcome.quarantined) == (5, 2, {"corrupt": 1})


# The client.


def test_the_client_waits_as_long_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    answers = [
        httpx.Response(
            429, headers={"Retry-After": "3"}, json={"code": "overloaded", "detail": "later", "request_id": "r0"}
        ),
        httpx.Response(503, json={"code": "not_ready", "detail": "later", "request_id": "r0"}),
        httpx.Response(200, json={"models": [], "refused": {}, "limits": {}, "batches": False}),
    ]
    with Client("http://service", transport=httpx.MockTransport(lambda request: answers.pop(0))) as client:
        assert client.service().models == []
    assert waits[0] == 3
    assert 0.25 <= waits[1] <= 0.5
    refusal = httpx.Response(422, json={"code": "corrupt", "detail": "image: broken", "request_id": "r1"})
    with Client("http://service", transport=httpx.MockTransport(lambda request: refusal)) as client:
        with pytest.raises(ServiceError) as error:
            client.score_image(b"x")
        with pytest.raises(ValueError, match="either"):
            client.score_image()
    assert (error.value.status, error.value.code, error.value.request_id) == (422, "corrupt", "r1")
    assert len(waits) == 2


def test_both_clients_say_the_same(service: Service, client: Client) -> None:
    async def story() -> ScoreAnswer:
        async with AsyncClient(service.url) as one:
            with pytest.raises(ServiceError, match="not_an_image"):
                await one.score_image(b"nothing")
            await one.service()
            return await one.score_video(REEL, tasks=["fs2k"])

    assert asyncio.run(story()).tasks["fs2k"].values == client.score_video(REEL, tasks=["fs2k"]).tasks["fs2k"].values
    with (
        Client("http://127.0.0.1:9", retries=Retries(most=2, first_wait_s=0.01)) as nobody,
        pytest.raises(ServiceError, match="no_answer"),
    ):
        nobody.service()
