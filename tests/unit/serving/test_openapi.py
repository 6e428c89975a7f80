"""Requests made from the OpenAPI description: the service never fails, and answers as it says it does."""

from __future__ import annotations

from typing import Any

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

HEADERS = {"X-API-Key": "a-key-of-more-than-16-characters"}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_no_request_makes_the_service_fail(client: Any) -> None:
    described = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers=HEADERS)
    operations = [found.ok() for found in described.get_all_operations()]
    assert {"/v1/predict", "/v1/explain", "/v2/models/{name}/infer"} <= {operation.path for operation in operations}
    for operation in operations:

        @hypothesis.settings(
            max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=HEADERS, checks=CHECKS)

        check()
