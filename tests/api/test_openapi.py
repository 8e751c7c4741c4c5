"""The description of the routes at /api: it is valid, describes every route, and its examples are real."""

from __future__ import annotations

import re
from dataclasses import asdict

import jsonschema_rs
import orjson
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from fedstac.api.app import CAPABILITIES, TABLE
from fedstac.api.http import openapi
from fedstac.api.http.openapi import Example, operation_name
from fedstac.api.route import Route
from tests.support.exchanges import SCENARIO, record
from tests.support.nodes import Api

DOCUMENT = orjson.loads(
    orjson.dumps(openapi.document(CAPABILITIES, title="t", version="1", base_url="https://west.example"))
)
# of these an example would be large, or is the document itself
NO_EXAMPLE = {
    "GET /", "GET /api", "GET /asyncapi.json", "GET /api.html",
    "GET /api-assets/{name}", "GET /problems", "GET /queryables",
    "GET /collection-queryables",
    "GET /collections/{collection_id}/queryables", "GET /vocabularies", "GET /vocabularies/{project}/{version}",
    "GET /extensions/{name}/{version}/schema.json", "GET /snapshot", "GET /snapshot/parts/{part}", "GET /metrics",
}  # fmt: skip


def test_the_document_is_valid() -> None:
    assert [str(error) for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_nothing_in_it_is_external() -> None:
    references = set(re.findall(r'"\$ref":"([^"]+)"', orjson.dumps(DOCUMENT).decode()))
    assert references
    assert [one for one in references if not one.startswith("#/")] == []


@pytest.mark.parametrize("route", TABLE, ids=operation_name)
def test_every_route_is_described(route: Route) -> None:
    operation = DOCUMENT["paths"][re.sub(r":\w+}", "}", route.path)][route.method.lower()]
    assert re.fullmatch(r"[A-Z][^/].*\.", operation["summary"]), "the handler's docstring says what the route does"
    assert {parameter["name"] for parameter in operation["parameters"]} >= set(route.path_parameters)
    assert set(operation["responses"]) >= {str(answer.status) for answer in route.answers}
    assert any(status < "400" for status in operation["responses"]), "declare its answers"
    if route.method in ("POST", "PUT", "PATCH") and route.body is None:
        assert "requestBody" not in operation
    if operation_name(route) not in NO_EXAMPLE and route.method != "OPTIONS":
        assert any(ask.operation == operation_name(route) for ask in SCENARIO), "add it to tests/support/exchanges.py"


@pytest.mark.parametrize("exchange", openapi.recorded_examples(), ids=lambda one: f"{one.operation}: {one.summary}")
def test_every_example_is_as_the_document_says(exchange: Example) -> None:
    method, path = exchange.operation.split(" ")
    response = DOCUMENT["paths"][re.sub(r":\w+}", "}", path)][method.lower()]["responses"][str(exchange.status)]
    if "$ref" in response:
        response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    schemas = [content["schema"] for content in response.get("content", {}).values()]
    if exchange.answer is not None:
        findings = jsonschema_rs.Draft202012Validator(
            {"anyOf": schemas, "components": DOCUMENT["components"]}
        ).iter_errors(exchange.answer)
        assert [f"{finding.instance_path}: {finding.message[:300]}" for finding in findings] == []


async def test_it_is_served(api: Api) -> None:
    answer = await api.anyone.get("/api")
    assert answer.headers["content-type"] == "application/vnd.oai.openapi+json;version=3.1"
    assert answer.json()["servers"] == [{"url": api.url}]
    assert answer.json()["paths"] == DOCUMENT["paths"]
    again = await api.anyone.get("/api", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


async def test_every_example_is_a_real_answer(dsn: str) -> None:
    real = [orjson.loads(orjson.dumps(asdict(exchange))) for exchange in await record(dsn)]
    written = [orjson.loads(orjson.dumps(asdict(exchange))) for exchange in openapi.recorded_examples()]
    for example, answer in zip(written, real, strict=True):
        assert answer == example, "`make docs` writes the examples anew"
