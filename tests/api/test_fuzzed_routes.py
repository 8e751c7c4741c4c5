"""Requests that schemathesis makes up from the description at /api: every answer is one that the description has."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from starlette.responses import Response

from fedstac.api.http import openapi
from fedstac.api.http.endpoint import Endpoint
from fedstac.db import nodes
from fedstac.domain.errors import Problem
from tests.support import exchanges
from tests.support.nodes import Api, StartApi

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "ignored_auth",
)  # fmt: skip


async def fuzz(api: Api, folder: Path, *options: str) -> None:
    """Let schemathesis ask the node, as somebody who may do everything. AssertionError with what it found.

    The node has gone through the scenario of the examples before, so that their ids are there.
    """
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        token = await nodes.issue_token(conn, "everybody", ["admin", "node:east"])
        tokens = {name: await nodes.issue_token(conn, name, roles) for name, roles in exchanges.TOKENS.items()}
    finally:
        await conn.close()
    scenario = exchanges.Scenario(api.anyone, tokens)
    for ask in exchanges.SCENARIO:
        await scenario.exchange(ask)
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{api.url}/api", "--checks", ",".join(CHECKS),
        "--header", f"Authorization: Bearer {token}", "--workers", "2", "--continue-on-failure", "--no-color",
        "--generation-deterministic", "--suppress-health-check", "all",
        "--exclude-path", "/events/stream", *options,  # it has no end: tests/api/test_event_streams.py
        stdout=PIPE, stderr=STDOUT, cwd=folder,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.fixture
def undescribed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The problems that routes answered with and do not declare; those of the guard come before any route."""
    names: set[str] = set()
    answer = Endpoint._answer

    async def watched(self: Endpoint, *arguments: Any) -> Response:
        try:
            return await answer(self, *arguments)
        except Problem as problem:
            if type(problem) not in openapi.problems_of(self._route):
                names.add(f"{openapi.operation_name(self._route)}: {problem.name}: {problem.detail}")
            raise

    monkeypatch.setattr(Endpoint, "_answer", watched)
    return names


@pytest.fixture
async def target(start_api: StartApi, dsn: str) -> Api:
    """A node that answers writes at once, so that many requests are sent in a short time."""
    return await start_api(dsn=dsn, default_wait_seconds=0, request_seconds=20)


@pytest.mark.long
async def test_no_made_up_request_has_an_answer_that_is_not_described(
    target: Api, undescribed: set[str], tmp_path: Path
) -> None:
    await fuzz(target, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "3")
    assert sorted(undescribed) == []


@pytest.mark.soak
async def test_nor_have_thousands_of_them(target: Api, undescribed: set[str], tmp_path: Path) -> None:
    await fuzz(target, tmp_path, "--phases", "examples,coverage,fuzzing,stateful", "--max-time", "600")
    assert sorted(undescribed) == []
