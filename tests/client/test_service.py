"""The identity of a service: tokens that are fetched and renewed in time, and a secret that nobody sees."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fedstac.client import service
from fedstac.client.asynchronous import AsyncClient
from fedstac.client.credentials import EARLY_SECONDS, Away
from fedstac.client.service import ServiceAccount, ServiceTokens
from fedstac.client.transport import LoginFailed, NotAuthorised
from fedstac.demo import sample
from fedstac.demo.identity_provider import AUDIENCE, as_settings, replica_client_of
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import SourceAddress
from fedstac.settings import Misconfigured
from tests.support.demo_provider import DemoProvider, demo_provider
from tests.support.forking import Forks
from tests.support.nodes import Api, StartApi
from tests.support.waiting import StoppedClock

SECRET = "s3cret:with colon & " + secrets.token_hex(4)
CLIENT_ID = replica_client_of("south")


@pytest.fixture(scope="module")
def provider(command_forks: Forks) -> Iterator[DemoProvider]:
    with demo_provider(command_forks.program, {CLIENT_ID: SECRET}) as process:
        yield process


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    stopped = StoppedClock()
    monkeypatch.setattr(service, "time", stopped)
    return stopped


def tokens(provider: DemoProvider, http: httpx.Client | None = None, **changes: Any) -> ServiceTokens:
    account = {"issuer": provider.url, "client_id": CLIENT_ID, "client_secret": SECRET, **changes}
    return ServiceTokens(ServiceAccount(**account), http=http)


def test_a_token_is_kept_until_shortly_before_its_end(provider: DemoProvider, clock: StoppedClock) -> None:
    source = tokens(provider)
    first = source()
    clock.advance(3600 - EARLY_SECONDS - 1)
    assert source() == first
    clock.advance(2)
    assert source() != first


def test_a_token_that_lasts_bridges_the_absence_of_its_issuer(provider: DemoProvider, clock: StoppedClock) -> None:
    requests: list[str] = []
    is_away = False

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request.url.path)
        if is_away:
            raise httpx.ConnectError("no route to host")
        return provider.http.send(httpx.Request(
            request.method, request.url, headers=request.headers, content=request.read()
        ))  # fmt: skip

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        source = tokens(provider, http)
        first = source()
        is_away = True
        clock.advance(3600 - EARLY_SECONDS + 1)
        requests.clear()
        assert [source(), source()] == [first, first]
        assert len(requests) == 1, "while it is away it is not asked for each request"
        clock.advance(EARLY_SECONDS)
        with pytest.raises(Away, match="does not answer"):
            source()
        is_away = False
        clock.advance(service.REST_SECONDS + 1)
        assert source() != first


def test_a_token_that_lasts_is_given_while_another_thread_renews_it(
    provider: DemoProvider, clock: StoppedClock
) -> None:
    source = tokens(provider)
    first = source()
    clock.advance(3600 - EARLY_SECONDS + 1)
    with source._renewing:  # as a thread that waits for the provider
        assert source() == first
        source.forget()  # the event loop calls it, and must not wait
    assert source() != first


def test_a_wrong_secret_is_refused_and_in_no_message(provider: DemoProvider) -> None:
    with pytest.raises(LoginFailed, match="its secret") as refusal:
        tokens(provider, client_secret="wrong-secret-1")()
    assert "wrong-secret-1" not in str(refusal.value)
    with pytest.raises(LoginFailed):
        tokens(provider, client_id=replica_client_of("north"))()
    assert SECRET not in repr(ServiceAccount(provider.url, CLIENT_ID, SECRET))


def test_only_https_or_the_loopback_gets_the_secret() -> None:
    with pytest.raises(ValueError, match="no https address"):
        ServiceAccount("http://issuer.example", CLIENT_ID, SECRET)


SET = {"issuer": "https://issuer.example", "client_id": "replica", "client_secret": "s3cret"}


@pytest.mark.parametrize(("settings", "fault"), [
    ({}, "set FEDSTAC_REPLICA_TOKEN, or FEDSTAC_REPLICA_ISSUER"),
    ({**SET, "client_secret": ""}, "FEDSTAC_REPLICA_CLIENT_SECRET is missing"),
    ({**SET, "token": "fst_x"}, "leave one of them out"),
    ({**SET, "issuer": "http://issuer.example"}, "FEDSTAC_REPLICA_ISSUER: .* no https"),
])  # fmt: skip
def test_settings_that_name_no_identity_say_what_is_missing(settings: dict[str, str], fault: str) -> None:
    empty = dict.fromkeys(("token", "issuer", "client_id", "client_secret"), "")
    with pytest.raises(Misconfigured, match=fault) as refusal:
        service.token_source(**{**empty, **settings})
    assert "s3cret" not in str(refusal.value)


def test_a_fixed_token_stands_in_for_client_credentials() -> None:
    assert service.token_source(token="fst_x", issuer="", client_id="", client_secret="")() == "fst_x"


@pytest.fixture
async def west(start_api: StartApi, dsn: str, provider: DemoProvider) -> Api:
    settings = {name.removeprefix("FEDSTAC_").lower(): value for name, value in as_settings(provider.url).items()}
    assert settings["audience"] == AUDIENCE
    api = await start_api(dsn=dsn, default_wait_seconds=60, **settings)
    (await api.admin.post("/collections", json=sample.collection())).raise_for_status()
    return api


async def test_a_replica_node_writes_its_own_entries_and_nothing_else(west: Api, provider: DemoProvider) -> None:
    """The policy that is built in reads the right REPLICATE on CMIP6 and on the node from its token."""
    item = next(sample.items(1))
    assert (await west.admin.post("/collections/CMIP6/items", json=item)).status_code == 201
    entries = {key: {"href": f"https://south.example/{key}"} for key in item["assets"] if key != "globus"}
    async with AsyncClient(west.url, tokens(provider), retries=0) as client:
        result = await client.put_replica(item["id"], "south", entries, collection="CMIP6")
        assert result.outcome == "replicated", result
        replicas = await client.list_replicas(item["id"], collection="CMIP6")
        assert [each.node for each in replicas] == ["south"]
        with pytest.raises(NotAuthorised, match="REPLICATE on the project CMIP6 and on the node east"):
            await client.put_replica(item["id"], "east", entries, collection="CMIP6")
        with pytest.raises(NotAuthorised):
            await client.retract(item["id"], collection="CMIP6", reason="because")
        await client.remove_replica(item["id"], "south", collection="CMIP6")


async def test_the_feed_takes_the_same_identity(west: Api, provider: DemoProvider) -> None:
    async with Origin(SourceAddress(west.url, "", token_source=tokens(provider))) as origin:
        assert (await origin.head())[0] == "west"
    async with Origin(SourceAddress(west.url, "", token_source=tokens(provider, client_secret="x"))) as origin:
        with pytest.raises(SourceRefused, match="gives replica-node:south no token"):
            await origin.head()
    nobody = tokens(provider, issuer="http://127.0.0.1:9")
    async with Origin(SourceAddress(west.url, "", token_source=nobody)) as origin:
        with pytest.raises(SourceAway, match="does not answer"):
            await origin.head()


async def test_a_token_that_is_refused_is_not_sent_again(west: Api, provider: DemoProvider) -> None:
    """A provider may change its keys before a token ends."""
    source = tokens(provider)
    first = source()
    source._token = service._Token("fst_unknown", *(2 * [time.monotonic() + 1000]))
    async with Origin(SourceAddress(west.url, "", token_source=source)) as origin:
        with pytest.raises(SourceRefused, match="401"):
            await origin.head()
        assert (await origin.head())[0] == "west"
    assert source() not in ("fst_unknown", first)
