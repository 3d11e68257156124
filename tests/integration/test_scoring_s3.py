"""Scoring a bucket into a bucket: the same run, with nothing on the local disk but the scorers."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import Storage, StorageError
from infra.tables import DeltaStore
from ray_jobs.reporting import write_report
from ray_jobs.score_config import ScoreConfig
from ray_jobs.score_table import QUARANTINE, score_table
from ray_jobs.scoring import run_score
from tests.integration.conftest import World
from tests.storage_suite import s3_settings

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bucket(world: World) -> Iterator[Settings]:
    """Settings for a server whose bucket holds the drawn videos under ``videos/``."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    storage_settings = s3_settings(f"http://{host}:{port}", read_ahead_bytes=1 << 20)
    client = boto3.client(
        "s3",
        endpoint_url=storage_settings.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="media")
    storage = Storage(storage_settings)
    for path in sorted((world.folder / "videos").iterdir()):
        storage.put(f"s3://media/videos/{path.name}", path.read_bytes())
    yield world.settings.model_copy(update={"storage": storage_settings})
    server.stop()


def test_a_bucket_is_scored_reported_and_then_done(world: World, bucket: Settings, tmp_path: Path) -> None:
    tables = "s3://media/scores"
    config = ScoreConfig(catalog="s3://media/videos", tables=tables, scorers=world.scorers)
    num_videos = len(list((world.folder / "videos").iterdir()))
    result = run_score(config, bucket)
    assert result.outcome is not None
    assert result.outcome.done == result.plan.num_due == num_videos
    store = DeltaStore(tables, Storage(bucket.storage))
    assert store.num_rows(score_table("fs2k")) + store.num_rows(QUARANTINE) == num_videos
    etags = {stat.uri: stat.etag for stat in Storage(bucket.storage).list_prefix("s3://media/videos")}
    dataset = store.dataset(score_table("fs2k"))
    assert dataset is not None
    for row in dataset.to_table(columns=["uri", "etag"]).to_pylist():
        assert row["etag"] == etags[row["uri"]]
    assert run_score(config, bucket).plan.num_due == 0

    write_report(tables, "s3://media/report.html", bucket, num_samples=2)
    assert b"<html" in Storage(bucket.storage).read_all("s3://media/report.html")

    name = next(name for name in etags if "face-0001" in name)
    Storage(bucket.storage).put(name, Path(world.folder / "videos" / "face-0002.mp4").read_bytes())
    again = run_score(config, bucket)
    assert again.plan.num_due == again.plan.counts["fs2k"]["stale_content"] == 1


def test_a_bucket_that_is_not_there_is_named(world: World, bucket: Settings) -> None:
    config = ScoreConfig(catalog="s3://nobody/videos", tables="s3://media/other", scorers=world.scorers)
    with pytest.raises((UserError, StorageError), match="nobody"):
        run_score(config, bucket)
