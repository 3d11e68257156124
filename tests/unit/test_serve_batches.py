"""Batches over HTTP: jobs of a cluster, their keys, states and records."""

import json
import re
from pathlib import Path

import pytest

from serve.client import Client, ServiceError
from tests.serving import REEL, SAMPLES, FakeJobs, Service


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
    jobs.jobs[other.id] = ("FAILED", "exit code 2, last available logs:\nRunning …\nerror: c.csv: no column uri\n")
    assert client.get_batch(other.id).message == "c.csv: no column uri"
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


def test_a_batch_that_is_stopped_before_its_job_begins_does_not_run(service: Service, client: Client) -> None:
    jobs = service_jobs(service)
    submit = jobs.submit

    def stopped_meanwhile(job_id: str, entrypoint: str, env: dict[str, str]) -> None:
        with Client(service.url) as another:
            assert another.stop_batch(job_id).state == "stopped"
        submit(job_id, entrypoint, env)

    jobs.submit = stopped_meanwhile
    try:
        batch = client.create_batch(str(SAMPLES))
    finally:
        jobs.submit = submit
    assert jobs.jobs[batch.id][0] == batch.state.upper() == "STOPPED"


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
