"""Tokens of an identity provider at a node: which are taken, which are refused, and what holds in its absence."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx
import pytest
from joserfc.jwk import ECKey, RSAKey
from structlog.testing import capture_logs

from fedstac.api.people import identity
from fedstac.demo import sample
from fedstac.domain.policy import Action
from fedstac.identity import oidc, provider_answers
from tests.support.identity import AUDIENCE, CREATE, INTROSPECTS, Provider, StartNode, bearer, public, segment, signed
from tests.support.nodes import Api, StartApi
from tests.support.waiting import StoppedClock, until

ITEMS = "/collections/CMIP6/items"


def ncar() -> dict[str, Any]:
    """Return an item of the institution that alice may publish for."""
    return next(item for item in sample.items(200) if item["properties"]["cmip6:institution_id"] == "NCAR")


async def me(api: Api, token: str) -> httpx.Response:
    return await api.anyone.get("/me", headers=bearer(token))


async def refused(api: Api, token: str) -> bool:
    return (await me(api, token)).status_code == 401


# --- taken ---


async def test_a_good_token_publishes_under_a_pseudonym(start_node: StartNode, provider: Provider) -> None:
    api = await start_node()
    answer = await api.anyone.post(ITEMS, json=ncar(), headers=bearer(provider.token()))
    assert answer.status_code == 201, answer.text
    shown = (await me(api, provider.token())).json()
    assert (shown["roles"], [each["rule"] for each in shown["rights"]]) == ([], ["builtin: ESGF CREATE"])
    assert (shown["issuer"], shown["subject"], shown["full_name"]) == (provider.url, "alice", "Alice Example")
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        actors = await conn.fetch("SELECT DISTINCT actor FROM fedstac.audit WHERE action = 'publish'")
        people = await conn.fetch("SELECT 'person:' || pseudonym AS name, iss, sub FROM fedstac.person")
    finally:
        await conn.close()
    assert {row["actor"] for row in actors} == {shown["name"]}
    assert [tuple(row) for row in people] == [(shown["name"], provider.url, "alice")]
    assert "alice" not in shown["name"]


async def test_tokens_of_ours_are_taken_beside(start_node: StartNode) -> None:
    api = await start_node()
    shown = (await api.admin.get("/me")).json()
    assert shown == {
        "name": "admin", "roles": ["admin"], "issuer": None, "subject": None, "groups": [], "entitlements": [],
        "expires": None,
        "policy_error": None, "own_groups": [], "rights": [{
            "rule": "builtin: administrators", "actions": sorted(Action), "projects": ["*"], "institutions": ["*"],
            "nodes": ["*"],
        }],
    }  # fmt: skip


@pytest.mark.parametrize("curve", ["P-256", "P-384"])
async def test_elliptic_keys_are_taken(start_node: StartNode, provider: Provider, curve: str) -> None:
    key = ECKey.generate_key(curve, {"kid": "other"})
    provider.set(jwks=public(key, provider.rsa))
    api = await start_node()
    answer = await me(api, provider.token({"alg": {"P-256": "ES256", "P-384": "ES384"}[curve]}, key=key))
    assert answer.status_code == 200, answer.text


async def test_audiences_may_be_a_list_and_kid_may_be_missing(start_node: StartNode, provider: Provider) -> None:
    api = await start_node()
    assert (await me(api, provider.token({"kid": None}, aud=["other", AUDIENCE]))).status_code == 200


async def test_groups_are_read_from_the_claim_that_is_configured(start_node: StartNode, provider: Provider) -> None:
    api = await start_node(groups_claim="realm_access.roles")
    answer = (await me(api, provider.token(realm_access={"roles": ["esgf-admins", 5, "x" * 600]}))).json()
    assert (answer["groups"], answer["roles"]) == (["esgf-admins"], ["admin"])


async def test_two_providers_can_be_configured(start_node: StartNode, provider: Provider) -> None:
    second = Provider()
    try:
        second.start()
        both = json.dumps([{"issuer": provider.url}, {"issuer": second.url, "audience": "elsewhere"}])
        api = await start_node(issuers=both)
        first = (await me(api, provider.token())).json()
        other = (await me(api, second.token(aud="elsewhere"))).json()
        assert first["name"] != other["name"], "the same sub at another issuer is somebody else"
        assert (await me(api, second.token())).status_code == 401
        assert (await me(api, provider.token(key=second.rsa))).status_code == 401
    finally:
        second.close()


async def test_a_person_keeps_a_pseudonym_until_erased(
    start_node: StartNode, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "KEPT_SECONDS", 0.0)
    api = await start_node()
    names = {(await me(api, provider.token(name=name))).json()["name"] for name in ("Alice", "Alice B.", "Alice B.")}
    at_once = await asyncio.gather(*(me(api, provider.token(sub="bob", jti=str(n))) for n in range(20)))
    assert len(names) == len({answer.json()["name"] for answer in at_once}) == 1
    conn = await asyncpg.connect(api.settings.dsn)
    try:
        assert await conn.fetchval("SELECT name FROM fedstac.person WHERE sub = 'alice'") == "Alice B."
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("DELETE FROM fedstac.person")
    finally:
        await conn.close()


# --- refused ---


def with_header(**header: Any) -> Callable[[Provider], str]:
    return lambda provider: provider.token(header)


def with_claims(**claims: Any) -> Callable[[Provider], str]:
    return lambda provider: provider.token(**claims)


def unsigned(alg: str) -> Callable[[Provider], str]:
    return lambda provider: f"{segment({'alg': alg, 'kid': 'rsa'})}.{segment(provider.claims())}."


def hs256_with_the_public_key(provider: Provider) -> str:
    """Return the token as text: joserfc does not make it."""
    signed = f"{segment({'alg': 'HS256', 'kid': 'rsa'})}.{segment(provider.claims())}"
    public_key = RSAKey.import_key(provider.rsa.as_dict(private=False)).as_pem(private=False)
    proof = hmac.digest(public_key, signed.encode(), "sha256")
    return f"{signed}.{segment(proof)}"


def embedded_key(provider: Provider) -> str:
    own = RSAKey.generate_key(2048)
    return provider.token({"jwk": own.as_dict(private=False), "kid": None}, key=own)


def forged(provider: Provider) -> str:
    return provider.token({"kid": "rsa"}, key=RSAKey.generate_key(2048, {"kid": "rsa"}))


def changed(provider: Provider) -> str:
    head, _, signature = provider.token().split(".")
    return f"{head}.{segment(provider.claims(sub='admin'))}.{signature}"


def twice(provider: Provider) -> str:
    """Return a token that is valid if the last of two equal names counts."""
    payload = json.dumps(provider.claims())
    raw = '{"aud": "other", ' + payload[1:]
    return signed({"alg": "RS256", "kid": "rsa"}, raw, provider.rsa)


HOSTILE: dict[str, Callable[[Provider], str]] = {
    "expired": lambda p: p.token(exp=int(time.time()) - 120),
    "no end": with_claims(exp=None),
    "end as text": with_claims(exp="4102444800"),
    "end as true": with_claims(exp=True),
    "end a list": with_claims(exp=[4102444800]),
    "not valid yet": lambda p: p.token(nbf=int(time.time()) + 600),
    "nbf as text": with_claims(nbf="0"),
    "issued in the future": lambda p: p.token(iat=int(time.time()) + 600),
    "wrong issuer": with_claims(iss="http://127.0.0.1:9/evil"),
    "issuer with a slash more": lambda p: p.token(iss=p.url + "/"),
    "issuer a list": lambda p: p.token(iss=[p.url]),
    "no issuer": with_claims(iss=None),
    "sub is no text": with_claims(sub=5),
    "sub is a list": with_claims(sub=["alice"]),
    "sub is empty": with_claims(sub=""),
    "sub is missing": with_claims(sub=None),
    "sub is long": with_claims(sub="a" * 256),
    "sub with NUL": with_claims(sub="alice\x00"),
    "sub with a lone surrogate": with_claims(sub="alice\ud800"),
    "alg none": unsigned("none"),
    "alg None": unsigned("None"),
    "alg empty": unsigned(""),
    "alg RS256 unsigned": unsigned("RS256"),
    "alg missing": lambda p: f"{segment({'kid': 'rsa'})}.{segment(p.claims())}.AAAA",
    "alg a list": lambda p: f"{segment({'alg': ['RS256'], 'kid': 'rsa'})}.{segment(p.claims())}.AAAA",
    "HS256 with the public key": hs256_with_the_public_key,
    "RS256 said, EC key named": lambda p: p.token({"kid": "ec"}),
    "embedded jwk": embedded_key,
    "embedded jku": with_header(jku="http://127.0.0.1:9/keys"),
    "embedded x5u": with_header(x5u="http://127.0.0.1:9/cert"),
    "embedded x5c": with_header(x5c=["AAAA"]),
    "crit": with_header(crit=["exp"], exp=1),
    "crit empty": lambda p: f"{segment({'alg': 'RS256', 'crit': []})}.{segment(p.claims())}.AAAA",
    "kid is a number": lambda p: f"{segment({'alg': 'RS256', 'kid': 1})}.{segment(p.claims())}.AAAA",
    "typ of another kind": with_header(typ="logout+jwt"),
    "unknown kid": with_header(kid="../../../etc/passwd"),
    "signed by a stranger": forged,
    "claims changed": changed,
    "a claim twice": twice,
    "header no JSON": lambda p: f"{segment(b'{alg')}.{segment(p.claims())}.AAAA",
    "payload no object": lambda p: f"{segment({'alg': 'RS256', 'kid': 'rsa'})}.{segment([1])}.AAAA",
    "payload deep": lambda p: f"{segment({'alg': 'RS256'})}.{segment(b'[' * 4000)}.AAAA",
    "cut off": lambda p: p.token()[:-20],
    "four parts": lambda p: p.token() + ".AAAA",
    "padding": lambda p: p.token() + "==",
    "100 000 groups": lambda p: f"{segment({'alg': 'RS256'})}.{segment({'groups': ['g'] * 100_000})[:20_000]}.AAAA",
    "over 1000 groups": with_claims(groups=["g"] * 1500),
    "oversized": with_claims(padding="x" * 9000),
    "opaque": lambda p: "opaque-and-unknown",
    "not ASCII": lambda p: "tök\xa0en",
}


async def test_hostile_tokens_are_refused_with_a_reason(start_node: StartNode, provider: Provider) -> None:
    api = await start_node()
    for name, make in HOSTILE.items():
        token = make(provider).encode("latin-1")
        answer = await api.anyone.post(ITEMS, json=ncar(), headers={b"Authorization": b"Bearer " + token})
        assert answer.status_code == 401, (name, answer.text)
        assert answer.json()["code"] in ("invalid-token", "unauthenticated"), name
        challenge = answer.headers["www-authenticate"]
        assert 'Bearer realm="fedstac", error="invalid_token", error_description="' in challenge, name
        assert f'resource_metadata="{api.url}/.well-known/oauth-protected-resource"' in challenge, name
    assert not (await api.anyone.get(ITEMS)).json()["features"]
    assert provider.asked("/jwks") <= 2, "bogus kids do not make the node fetch and fetch"


@pytest.mark.parametrize("audience", ["https://east.example", AUDIENCE + "/", AUDIENCE.upper(), [], None, {"a": 1}])
async def test_a_token_for_another_service_is_a_problem_of_its_own(
    start_node: StartNode, provider: Provider, audience: object
) -> None:
    api = await start_node()
    answer = await api.anyone.get("/me", headers={**bearer(provider.token(aud=audience)), "Host": "west.example"})
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid-token-audience")
    assert AUDIENCE in answer.json()["detail"]
    for_host = await api.anyone.get("/me", headers={**bearer(provider.token(aud="evil")), "Host": "evil"})
    assert for_host.status_code == 401


async def test_who_sends_no_token_made_no_error(start_node: StartNode) -> None:
    api = await start_node()
    answer = await api.anyone.get("/me")
    assert answer.status_code == 401
    assert "error" not in answer.headers["www-authenticate"]


async def test_strange_claims_give_no_right(start_node: StartNode, provider: Provider) -> None:
    api = await start_node()
    for n, strange in enumerate(({"esgf-admins": 1}, 5, True, [["esgf-admins"]], [{"name": "esgf-admins"}])):
        token = provider.token(groups=strange, eduperson_entitlement=strange, name=strange, email=strange, jti=n)
        answer = await me(api, token)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["groups"], answer.json()["roles"]) == ([], [])
        refused = await api.anyone.post(ITEMS, json=ncar(), headers=bearer(token))
        assert refused.status_code == 403


async def test_a_scope_that_is_required_has_to_be_there(start_node: StartNode, provider: Provider) -> None:
    api = await start_node({"required_scopes": ["fedstac:write"]})
    assert (await me(api, provider.token(scope="openid"))).status_code == 403
    assert (await me(api, provider.token(scope="openid fedstac:write"))).status_code == 200


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    """The clock by which the node judges tokens."""
    stopped = StoppedClock()
    for module in (identity, oidc, provider_answers):
        monkeypatch.setattr(module, "time", stopped)
    return stopped


async def test_a_token_ends_when_it_says_so_though_it_is_known(
    start_node: StartNode, provider: Provider, clock: StoppedClock
) -> None:
    api = await start_node(token_leeway_seconds=0)
    token = provider.token(iat=clock.time(), nbf=clock.time(), exp=clock.time() + 20)
    assert (await me(api, token)).status_code == 200
    clock.advance(21)
    assert await refused(api, token)


# --- keys ---


async def test_a_rotation_is_noticed_by_the_unknown_kid(
    start_node: StartNode, provider: Provider, no_rest: None
) -> None:
    api = await start_node()
    assert (await me(api, provider.token())).status_code == 200
    fresh = RSAKey.generate_key(2048, {"kid": "rsa-2"})
    provider.set(jwks=public(fresh))
    answers = await asyncio.gather(*(me(api, provider.token(key=fresh, jti=str(n))) for n in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert provider.asked("/jwks") == 2, "one fetch for all who came with the new key"
    assert (await me(api, provider.token(jti="old"))).status_code == 401


async def test_unusable_keys_are_left_out(start_node: StartNode, provider: Provider) -> None:
    good = provider.rsa.as_dict(private=False)
    provider.set(jwks={"keys": [
        {"kty": "oct", "kid": "rsa", "k": "AAAA"}, {"kty": "new", "kid": "rsa"}, "text", {**good, "n": "AQAB"},
        {**good, "use": "enc"}, {**good, "key_ops": 5}, {**good, "alg": "PS256"}, {"kty": "RSA", "kid": "rsa"},
        {"kty": "OKP", "crv": "X25519", "kid": "rsa", "x": "AAAA"}, {"kty": "EC", "crv": "P-999", "kid": "rsa"}, good,
    ]})  # fmt: skip
    api = await start_node()
    assert (await me(api, provider.token())).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"issuer": "https://other.example"}},
        {"metadata": {"jwks_uri": "http://198.51.100.1/keys"}},
        {"metadata": {"jwks_uri": 5}},
        {"redirects": {"/jwks": "/keys"}},
        {"jwks": {"keys": []}},
        {"jwks": ["no object"]},
        {"jwks": {"keys": [], "padding": "x" * (provider_answers.MAX_ANSWER + 1)}},
    ],
    ids=["issuer", "plain http elsewhere", "no text", "redirect", "no keys", "no object", "too large"],
)
async def test_a_provider_that_answers_wrongly_is_as_good_as_away(
    start_node: StartNode, provider: Provider, change: dict[str, Any]
) -> None:
    api = await start_node()
    provider.set(**change)
    answer = await me(api, provider.token())
    assert answer.status_code == 503, answer.text
    assert answer.headers["retry-after"] == "10"


# --- away ---


async def test_without_provider_writes_get_503_and_reads_go_on(start_node: StartNode, provider: Provider) -> None:
    provider.stop()
    api = await start_node()
    answer = await api.anyone.post(ITEMS, json=ncar(), headers=bearer(provider.token()))
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert provider.url in answer.json()["detail"]
    for path in ("/", "/collections", ITEMS, "/search", "/.well-known/oauth-protected-resource", "/scope"):
        assert (await api.anyone.get(path)).status_code == 200
    assert (await api.admin.post(ITEMS, json=ncar())).status_code == 201, "tokens of ours need no provider"


async def test_keys_that_are_here_go_on_working(start_node: StartNode, provider: Provider, no_rest: None) -> None:
    api = await start_node()
    assert (await me(api, provider.token())).status_code == 200
    provider.stop()
    assert (await me(api, provider.token(jti="another"))).status_code == 200
    assert (await me(api, provider.token({"kid": "rsa-2"}))).status_code == 503, "it may be new, nobody can tell"
    assert (await me(api, forged(provider))).status_code == 401, "the key is here, and did not sign this"
    provider.start()
    assert (await me(api, provider.token(jti="third"))).status_code == 200


async def test_keys_of_an_hour_are_renewed_beside(
    start_node: StartNode, provider: Provider, no_rest: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await start_node()
    assert (await me(api, provider.token())).status_code == 200
    monkeypatch.setattr(provider_answers, "KEYS_FRESH_SECONDS", 0.0)
    assert (await me(api, provider.token(jti="another"))).status_code == 200

    async def renewed() -> bool:
        return provider.asked("/jwks") >= 2

    await until(renewed)


async def test_what_was_away_is_taken_when_it_is_back(start_node: StartNode, provider: Provider, no_rest: None) -> None:
    provider.stop()
    api = await start_node()
    assert (await me(api, provider.token())).status_code == 503
    provider.start()
    assert (await me(api, provider.token())).status_code == 200


async def test_an_outage_of_the_provider_is_one_line_when_it_begins_and_one_when_it_ends(
    start_node: StartNode, provider: Provider, no_rest: None
) -> None:
    provider.stop()
    api = await start_node()
    with capture_logs() as logs:
        assert {(await me(api, provider.token())).status_code for _ in range(5)} == {503}
        provider.start()
        assert {(await me(api, provider.token())).status_code for _ in range(5)} == {200}
    began, ended = [log for log in logs if "identity provider" in log["event"]]
    assert provider.url in began["event"]
    assert (began["log_level"], ended["log_level"]) == ("warning", "info")
    assert ended["failures"] >= 5


# --- introspection ---


def active(provider: Provider, **changes: Any) -> dict[str, Any]:
    return {"active": True, **provider.claims(**changes)}


async def test_an_opaque_token_is_asked_about_once(start_node: StartNode, provider: Provider) -> None:
    provider.set(introspection={"good": active(provider)})
    api = await start_node(INTROSPECTS)
    answers = await asyncio.gather(*(me(api, "good") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    assert [each["rule"] for each in answers[0].json()["rights"]] == ["builtin: ESGF CREATE"]
    assert provider.asked("/introspect") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"active": False}, {"active": "true"}, {"active": 1}, {"active": None},
        {"iss": "https://other.example"}, {"aud": "https://other.example"}, {"aud": None},
        {"exp": 1}, {"nbf": 4102444800}, {"sub": None}, {"sub": 7}, {"groups": ["g"] * 100_000},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
async def test_what_introspection_does_not_confirm_is_refused(
    start_node: StartNode, provider: Provider, change: dict[str, Any]
) -> None:
    answer_of_introspection = {name: value for name, value in (active(provider) | change).items() if value is not None}
    provider.set(introspection={"token": answer_of_introspection})
    api = await start_node(INTROSPECTS)
    answer = await me(api, "token")
    assert answer.status_code == 401, answer.text
    assert answer.json()["code"] == ("invalid-token-audience" if "aud" in change else answer.json()["code"])


async def test_answers_are_kept_for_a_while_and_never_beyond_the_end(
    start_node: StartNode, provider: Provider, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "KEPT_SECONDS", 0.0)
    provider.set(introspection={"long": active(provider), "short": active(provider, exp=clock.time() + 10)})
    api = await start_node(INTROSPECTS, token_leeway_seconds=0)
    assert (await me(api, "long")).status_code == (await me(api, "short")).status_code == 200
    provider.set(introspection={"long": {"active": False}})
    clock.advance(11)
    assert await refused(api, "short")
    assert (await me(api, "long")).status_code == 200, "within the half minute that is promised"
    clock.advance(provider_answers.INTROSPECTED_SECONDS)
    assert await refused(api, "long")


async def test_a_provider_that_does_not_know_this_node_is_a_503(start_node: StartNode, provider: Provider) -> None:
    api = await start_node({**INTROSPECTS, "client_secret": "wrong"})
    assert (await me(api, "token")).status_code == 503


async def test_introspection_while_the_provider_is_away(
    start_node: StartNode, provider: Provider, no_rest: None, tmp_path: Any
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(INTROSPECTS["client_secret"] + "\n")  # type: ignore[operator]
    by_file = {name: value for name, value in INTROSPECTS.items() if name != "client_secret"}
    api = await start_node({**by_file, "client_secret_file": str(secret)})
    provider.stop()
    assert (await me(api, "token")).status_code == 503
    provider.start()
    provider.set(introspection={"token": active(provider)})
    assert (await me(api, "token")).status_code == 200


# --- what clients ask ---


async def test_the_resource_says_where_tokens_come_from(start_node: StartNode, provider: Provider) -> None:
    api = await start_node(scope="openid esgf")
    found = (await api.anyone.get("/.well-known/oauth-protected-resource")).json()
    assert (found["resource"], found["authorization_servers"]) == (api.url, [provider.url])
    assert found["scopes_supported"] == ["openid", "esgf"]
    assert found["fedstac_logins"][0]["client_id"] == "fedstac-cli"
    assert "secret" not in json.dumps(found)
    assert (await api.anyone.get("/scope")).json() == {"scope": "openid esgf"}


async def test_a_node_without_providers_says_so(start_api: StartApi, dsn: str, provider: Provider) -> None:
    api = await start_api(dsn=dsn)
    found = (await api.anyone.get("/.well-known/oauth-protected-resource")).json()
    assert "authorization_servers" not in found
    assert found["fedstac_logins"] == []
    assert (await me(api, provider.token())).status_code == 401


async def test_globus_groups_publish_for_their_institution(
    start_node: StartNode, provider: Provider, tmp_path: Any
) -> None:
    uuid = "5f2c8a90-b1d4-11ee-9c3e-0242ac120002"
    policy = tmp_path / "globus.json"
    groups = {"cmip6:institution_id": {"NCAR": [{"name": "ncar", "uuid": uuid, "url": "https://example.org"}]}}
    policy.write_text(json.dumps({"project": {"CMIP6": groups}}))
    api = await start_node(globus_policy=str(policy))
    token = provider.token(groups=[uuid.upper()], eduperson_entitlement=None)
    assert (await api.anyone.post(ITEMS, json=ncar(), headers=bearer(token))).status_code == 201
    stranger = provider.token(groups=["other"], eduperson_entitlement=None)
    assert (await api.anyone.post(ITEMS, json=ncar(), headers=bearer(stranger))).status_code == 403


async def test_entitlements_are_shown_as_they_were_understood(start_node: StartNode, provider: Provider) -> None:
    api = await start_node()
    shown = (await me(api, provider.token(eduperson_entitlement=[CREATE, CREATE, "urn:mace:other"]))).json()
    assert shown["entitlements"] == [{"kind": "project", "id": "CMIP6", "institution": "NCAR", "role": "CREATE"}]


async def test_a_provider_that_says_nothing_costs_a_moment_once(
    start_node: StartNode, provider: Provider, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_answers, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        api = await start_node({"issuer": url})
        answers = await asyncio.gather(*(me(api, provider.token(iss=url, jti=str(n))) for n in range(20)))
        later = await me(api, provider.token(iss=url))
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # all waited for the same answer, and nobody after them
            silent.accept()
    assert {answer.status_code for answer in (*answers, later)} == {503}
