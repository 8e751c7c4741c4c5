"""Pages ask the API's own handlers: with the access of their routes, and with the visitor as the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from starlette.datastructures import Headers, QueryParams

from fedstac.api import app
from fedstac.api.call import Call, CallProgress, RequestBody, Services
from fedstac.api.nodes import feed
from fedstac.api.subscriptions import subscriptions
from fedstac.api.writing import loads
from fedstac.console import verbs, visits
from fedstac.console.visits import ConsoleSession, Visit
from fedstac.domain.errors import MissingPermission, NotFound
from fedstac.domain.policy import Principal
from fedstac.settings import Settings
from fedstac.workers import roles

READER = Principal("reader", frozenset())


@pytest.fixture
async def services(dsn: str) -> AsyncIterator[Services]:
    """The services of a node that nobody serves."""
    application = app.create(
        Settings(dsn=dsn, node="west", run_workers=False, _env_file=None), "https://west.example", roles=[roles.PUBLISH]
    )
    async with application.router.lifespan_context(application):
        made: Services = application.state.services
        yield made


@pytest.fixture
def visit(services: Services) -> Visit:
    """A visit of somebody without a right, to a page whose query and headers are its own."""
    call = Call(
        services, Headers({"accept": "text/html", "if-match": "nonsense"}), QueryParams("all=true&limit=x"), {},
        RequestBody(), path="/console/subscriptions", query_string="all=true&limit=x",
        progress=CallProgress(caller=READER),
    )  # fmt: skip
    return Visit(call, visits.place_of(call), ConsoleSession(b"", "", READER))


async def test_a_handler_gets_what_the_page_gives_it_and_nothing_else(visit: Visit) -> None:
    document = await verbs.show(visit, subscriptions.get_subscriptions, query={"limit": " 5 ", "after": ""})
    assert document["subscriptions"] == []  # neither `all` nor the limit of the page's own query
    wish = {"format": "cloudevents"}
    answer = await verbs.ask(visit, subscriptions.put_subscription, body=wish, path_params={"subscription": "maps"})
    assert (answer.status, answer.document["owner"], answer.is_queued) == (201, "reader", False)
    gone = await verbs.ask(visit, subscriptions.delete_subscription, path_params={"subscription": "maps"})
    assert (gone.status, gone.document) == (204, None)
    with pytest.raises(NotFound):
        await verbs.show(visit, subscriptions.get_subscription, path_params={"subscription": "maps"})


async def test_the_access_that_a_route_declares_holds_for_pages(visit: Visit) -> None:
    with pytest.raises(MissingPermission):
        await verbs.show(visit, feed.get_snapshot)  # for nodes
    with pytest.raises(MissingPermission):
        await verbs.ask(visit, loads.post_reconcile, path_params={"collection_id": "CMIP6"})


def test_the_next_page_is_read_from_the_link() -> None:
    link = {"rel": "next", "href": "https://west.example/grants?limit=5&after=a%2Fb"}
    assert verbs.next_of({"links": [{"rel": "self", "href": "x"}, link]}) == "a/b"
    assert (verbs.next_of({"links": []}), verbs.next_of({})) == ("", "")
