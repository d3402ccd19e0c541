"""What /openapi.json says, against what the server does."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

# Not among them is that all that the schema allows is done: the server has limits, and the model has its own.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]

schema = schemathesis.pytest.from_fixture("document")



@pytest.fixture
def document(tiny):
    return schemathesis.openapi.from_url(f"{tiny}/openapi.json")


@schema.parametrize()
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_description_holds(case):
    case.call_and_validate(checks=CHECKS)
