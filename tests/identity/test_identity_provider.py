"""The provider of the demonstration: what it gives out is what OpenID Connect has, and it gives nothing out twice."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from fedstac.demo.identity_provider import ADMINISTRATORS, AUDIENCE, CLIENT, DEVICE
from tests.scenarios.watching import wait_until
from tests.support.forking import Forks

VERIFIER = "a" * 64
REQUIRED = {  # OpenID Connect Discovery 1.0, section 3; RFC 8628, section 4
    "issuer", "authorization_endpoint", "token_endpoint", "jwks_uri", "response_types_supported",
    "subject_types_supported", "id_token_signing_alg_values_supported", "device_authorization_endpoint",
}  # fmt: skip
CHALLENGE = "_-BU_nrgy23GXDr5th1SCfQ5hR20PQulmXM33xVGaOs"  # base64url(sha256(VERIFIER))
BACK = "http://127.0.0.1:4711/callback"
ASKED = {
    "client_id": CLIENT, "response_type": "code", "redirect_uri": BACK, "state": "s", "scope": "openid", "nonce": "n",
    "code_challenge": CHALLENGE, "code_challenge_method": "S256",
}  # fmt: skip


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory, command_forks: Forks) -> Iterator[httpx.Client]:
    """A client of `fedstac identity-provider`."""
    ready: Path = tmp_path_factory.mktemp("provider") / "ready"
    command = [*command_forks.program, "identity-provider", "--ready-file", str(ready)]
    process = subprocess.Popen(command)
    try:
        wait_until(ready.exists, what="the provider is ready")
        with httpx.Client(base_url=json.loads(ready.read_text())["url"], trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def tokens(http: httpx.Client, **form: str) -> dict[str, Any]:
    answer = http.post("/token", data={"client_id": CLIENT, **form})
    assert answer.headers["cache-control"] == "no-store"
    assert answer.is_success == ("error" not in answer.json())
    return dict(answer.json())


def begun(http: httpx.Client) -> dict[str, Any]:
    return dict(http.post("/device", data={"client_id": CLIENT, "scope": "openid"}).raise_for_status().json())


def code_for(http: httpx.Client, subject: str) -> dict[str, list[str]]:
    """Return what a browser brings back."""
    back = http.post("/authorize", params=ASKED, data={"subject": subject})
    assert back.headers["location"].startswith(f"{BACK}?")
    return parse_qs(urlsplit(back.headers["location"]).query)


def test_its_metadata_is_complete_and_its_tokens_are_signed_with_a_key_that_it_publishes(http: httpx.Client) -> None:
    found = http.get("/.well-known/openid-configuration").json()
    assert found.keys() >= REQUIRED
    login = begun(http)
    assert http.post(login["verification_uri_complete"], data={"subject": "ada"}).is_success
    given = tokens(http, grant_type=DEVICE, device_code=login["device_code"])
    published = http.get(found["jwks_uri"]).json()
    assert all("d" not in key for key in published["keys"])
    keys = KeySet.import_key_set(published)
    identity, access = (jwt.decode(given[name], keys, algorithms=["RS256"]) for name in ("id_token", "access_token"))
    assert (identity.claims["iss"], identity.claims["aud"], identity.claims["sub"]) == (found["issuer"], CLIENT, "ada")
    assert (access.claims["aud"], access.claims["groups"]) == (AUDIENCE, [ADMINISTRATORS])
    assert access.header["typ"] == "at+jwt"
    assert access.claims["exp"] - access.claims["iat"] == pytest.approx(given["expires_in"], abs=1)


def test_a_device_code_waits_for_the_page_and_works_once(http: httpx.Client) -> None:
    login = begun(http)
    poll = {"grant_type": DEVICE, "device_code": login["device_code"]}
    assert tokens(http, **poll)["error"] == "authorization_pending"
    page = http.get(login["verification_uri_complete"])
    assert login["user_code"] in page.text
    assert re.findall(r'name="subject" value="(\w*)"', page.text) == ["ada", "nina", "sam", ""]
    assert http.post(login["verification_uri_complete"], data={"subject": "sam"}).is_success
    assert http.post(login["verification_uri_complete"], data={"subject": "ada"}).status_code == 404
    assert tokens(http, **poll)["token_type"] == "Bearer"
    assert tokens(http, **poll)["error"] == "invalid_grant"


def test_codes_that_nobody_has_are_typed_in_or_refused(http: httpx.Client) -> None:
    assert '<input name="user_code">' in http.get("/activate").text
    assert http.get("/activate", params={"user_code": "<b>"}).status_code == 404
    refused = begun(http)
    http.post(refused["verification_uri_complete"], data={"subject": ""})
    assert tokens(http, grant_type=DEVICE, device_code=refused["device_code"])["error"] == "access_denied"
    assert tokens(http, grant_type=DEVICE, device_code="x")["error"] == "invalid_grant"
    assert http.post("/device", data={"client_id": "other"}).json()["error"] == "invalid_client"


def test_a_browser_brings_a_code_that_only_who_asked_can_use(http: httpx.Client) -> None:
    assert "Nina of NCAR" in http.get("/authorize", params=ASKED).text
    assert code_for(http, "")["error"] == ["access_denied"]
    form = {"grant_type": "authorization_code", "redirect_uri": BACK, "code_verifier": VERIFIER}
    back = code_for(http, "nina")
    assert (back["state"], back["iss"]) == (["s"], [str(http.base_url).rstrip("/")])
    assert tokens(http, **form, code=back["code"][0])["scope"] == "openid"
    assert tokens(http, **form, code=back["code"][0])["error"] == "invalid_grant"
    for wrong in ({"code_verifier": "b" * 64}, {"redirect_uri": BACK + "x"}, {"client_id": "other"}):
        [code] = code_for(http, "nina")["code"]
        assert "error" in tokens(http, **{**form, **wrong}, code=code), wrong


@pytest.mark.parametrize("wrong", [
    {"client_id": "other"}, {"response_type": "token"}, {"code_challenge": ""}, {"code_challenge_method": "plain"},
    {"redirect_uri": "https://evil.example/"}, {"redirect_uri": "http://evil.example/"}, {"redirect_uri": BACK + "?x"},
])  # fmt: skip
def test_nobody_is_sent_elsewhere_or_without_proof(http: httpx.Client, wrong: dict[str, str]) -> None:
    for answer in (http.get("/authorize", params=ASKED | wrong), http.post("/authorize", params=ASKED | wrong)):
        assert answer.status_code == 400
        assert "location" not in answer.headers


def test_a_token_is_renewed_once_and_not_after_it_was_taken_back(http: httpx.Client) -> None:
    form = {"grant_type": "authorization_code", "redirect_uri": BACK, "code_verifier": VERIFIER}
    first = tokens(http, **form, code=code_for(http, "sam")["code"][0])
    second = tokens(http, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert second["access_token"] != first["access_token"]
    assert tokens(http, grant_type="refresh_token", refresh_token=first["refresh_token"])["error"] == "invalid_grant"
    http.post("/revoke", data={"token": second["refresh_token"]}).raise_for_status()
    assert tokens(http, grant_type="refresh_token", refresh_token=second["refresh_token"])["error"] == "invalid_grant"
    assert tokens(http, grant_type="password")["error"] == "unsupported_grant_type"
