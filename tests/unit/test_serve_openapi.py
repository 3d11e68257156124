"""Requests made from the OpenAPI document: whatever it allows or forbids is answered as it says."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.serving import FakeJobs, Service, running_service

CHECKS = [
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("openapi")
    with running_service(folder, FakeJobs(), batches=str(folder / "batches"), buckets=(str(folder),)) as running:
        yield running


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_as_documented(service: Service, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{service.url}/v1/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:

        @settings(
            max_examples=int(os.environ.get("EXAMPLES", "12")),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case: Any) -> None:
            response = case.call(timeout=60)
            assert response.status_code < 500 or response.status_code == 503, response.text
            case.validate_response(response, checks=CHECKS)

        try:
            answers()
        except Unsatisfiable:
            continue  # nothing can be wrong with a request without parameters
