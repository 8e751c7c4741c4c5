"""A provider that others wrote (oidc-provider-mock, in a process of its own) and ours understand each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.support.identity import bearer
from tests.support.nodes import StartApi
from tests.support.waiting import PATIENCE

PROGRAM = """
import sys
from datetime import timedelta
from oidc_provider_mock import run_server_in_thread
with run_server_in_thread(access_token_max_age=timedelta(minutes=10)) as server:
    print(server.server_port, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def issuer() -> Iterator[str]:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROGRAM], stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://localhost:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(20)


async def id_token(issuer: str, client: str, subject: str) -> str:
    """Log in by the code flow of that provider, as a browser goes through it."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as http:
        metadata = (await http.get(f"{issuer}/.well-known/openid-configuration")).json()
        query = {
            "client_id": client, "response_type": "code", "redirect_uri": "http://127.0.0.1/back", "state": "s",
            "scope": "openid profile email",
        }  # fmt: skip
        back = await http.post(metadata["authorization_endpoint"], params=query, data={"sub": subject})
        code = parse_qs(urlsplit(back.headers["location"]).query)["code"][0]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": query["redirect_uri"]}
        answer = await http.post(metadata["token_endpoint"], data=form, auth=(client, "any"))
        found: str = answer.json()["id_token"]
        return found


async def test_its_discovery_keys_and_tokens_are_understood(start_api: StartApi, issuer: str, dsn: str) -> None:
    api = await start_api(dsn=dsn, issuers=json.dumps([{"issuer": issuer, "audience": "west"}]), background=False)
    good, other = await id_token(issuer, "west", "alice"), await id_token(issuer, "east", "alice")
    answer = await api.anyone.get("/me", headers=bearer(good))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["issuer"], answer.json()["subject"]) == (issuer, "alice")
    refused = await api.anyone.get("/me", headers=bearer(other))
    assert refused.json()["code"] == "invalid-token-audience"
