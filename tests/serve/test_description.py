"""The description of the routes, and requests made from it."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import sampled_from
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

OFTEN = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
NAMES = [None, "topics", "writing", "prefix", "voting", "feature-extraction", "pair", "tiny-llama"]
ROUTES = ["/v1/completions", "/v1/chat/completions", "/v1/classify", "/v1/embeddings", "/v1/models/{model}"]


@pytest.mark.parametrize("route", ROUTES)
def test_no_request_makes_the_server_fail(served, route):
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json").include(path=route)
    statuses = set()
    for operation in schema.get_all_operations():

        @OFTEN
        @given(case=operation.ok().as_strategy(), name=sampled_from(NAMES))
        def check(case, name):
            # Of itself it would find no name that is there.
            if name is not None and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = name
            found = case.call(timeout=60)
            case.validate_response(found, checks=[not_a_server_error, response_schema_conformance])
            statuses.add(found.status_code)

        check()
    wanted = {"/v1/models/{model}": {404}, "/v1/chat/completions": {400, 404}}
    assert statuses >= wanted.get(route, {200, 400, 404})


def test_every_route_that_takes_something_has_an_example(served):
    with served.http() as http:
        paths = http.get("/openapi.json").json()
    for path, methods in paths["paths"].items():
        for method in methods.values():
            assert method.get("description"), path
            if "requestBody" in method:
                name = method["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                assert paths["components"]["schemas"][name].get("examples"), path
