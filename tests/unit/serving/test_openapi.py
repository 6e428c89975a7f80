"""Requests made from the OpenAPI description: the service never fails, and answers as it says it does."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

KEY = "a-key-of-more-than-16-characters"


@pytest.fixture
def described(client: Any) -> Any:
    """The service of the fixtures, as it describes itself."""
    return schemathesis.openapi.from_asgi("/openapi.json", client.app, headers={"X-API-Key": KEY})


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
def test_no_request_makes_the_service_fail(case: schemathesis.Case) -> None:
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    case.call_and_validate(headers={"X-API-Key": KEY}, checks=checks)
