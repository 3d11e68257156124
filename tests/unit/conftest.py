"""One service for the tests of a module, and a client that tries once."""

import os
from collections.abc import Iterator

import pytest

from serve.client import Client, Retries
from tests.serving import SAMPLES, FakeJobs, Service, running_service

os.environ.pop("COLUMNS", None)  # pytest-xdist makes it 80; what the commands print has a width of its own


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    jobs = FakeJobs()
    with running_service(folder, jobs, batches=str(folder / "batches"), buckets=(os.path.relpath(SAMPLES),)) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, retries=Retries(most=1)) as one:
        yield one
