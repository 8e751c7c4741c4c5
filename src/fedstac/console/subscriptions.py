"""The tab of subscriptions: how far each is, what it refused, and what its owner or a manager does about that."""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from fedstac.api.subscriptions import subscriptions as api
from fedstac.console import pages, verbs
from fedstac.console.pages import ConsolePage, PageQuery
from fedstac.console.visits import Visit
from fedstac.db import feed
from fedstac.domain.errors import BadRequest, Problem
from fedstac.domain.events import Cursor
from fedstac.domain.policy import Action

FOLDER = "/subscriptions"
MINE, ALL = "mine", "all"
OWNERS = ((ALL, "everybody's"), (MINE, "my own"))
PLACES = (("head", "what comes from now on"), ("start", "everything that the log has"), ("", "another place"))
RESUMING = ("delivery", "url", "format", "key", "filter", "batch")  # members of a document that a PUT takes
STOPPED = ("paused", "ended")


class SubscriptionTask(StrEnum):
    """What one can do with a subscription."""

    REDRIVE = "redrive"
    SEEK = "seek"
    RESUME = "resume"
    END = "end"


async def get_list(visit: Visit) -> Response:
    """Show the visitor's subscriptions; to who manages messaging those of everybody."""
    query = PageQuery.of(visit)
    may_see_all = _manages(visit)
    owner = query.get("owner") or (ALL if may_see_all else MINE)
    asked_for = {"limit": query.get("limit"), "after": query.get("after"), "all": "true" if owner == ALL else ""}
    document = await verbs.show(visit, api.get_subscriptions, query=asked_for)
    content = {
        "query": query, "owner": owner, "owners": OWNERS, "may_see_all": may_see_all,
        "lags": await _lags(visit, document["subscriptions"]), "next_page": verbs.next_of(document),
        "outcome": query.get("outcome"),
    }  # fmt: skip
    return pages.show(visit, ConsolePage("subscriptions.html", document, content, live="subscriptions_live.html"))


def _manages(visit: Visit) -> bool:
    return visit.call.node.policy.verdict(visit.caller, Action.MESSAGING, api.EVERY).allowed


async def _lags(visit: Visit, documents: list[dict[str, Any]]) -> dict[str, int]:
    """Return by name how many places of the log are after that of each subscription."""
    async with visit.call.node.pool.acquire() as conn:
        head = await feed.head(conn)
    return {each["name"]: max(head.pos - Cursor.parse(each["cursor"]).pos, 0) for each in documents}


async def get_one(visit: Visit) -> Response:
    """Show one subscription: how far it is, what it wants, and its dead letters."""
    return await _page(visit)


async def _page(visit: Visit, *, place: str = "head", problem: Problem | None = None) -> Response:
    query = PageQuery.of(visit)
    document = await verbs.show(visit, api.get_subscription)
    letters = await verbs.show(visit, api.get_dead_letters, query={"after": query.get("after")})
    is_own = document["owner"] == visit.caller.name
    content = {
        "query": query, "outcome": query.get("outcome"), "letters": letters["dead_letters"],
        "next_page": verbs.next_of(letters), "lag": (await _lags(visit, [document]))[document["name"]],
        "places": PLACES, "place": place, "problem": problem,
        "may_resume": is_own and document["stand"] in STOPPED, "action": _address(visit, document["name"]),
    }  # fmt: skip
    status = problem.status if problem else 200
    page = ConsolePage("subscription.html", document, content, live="subscription_live.html", status=status)
    return pages.show(visit, page)


def _address(visit: Visit, name: str) -> str:
    return f"{visit.place.root}{FOLDER}/{quote(name, safe='')}"


async def post_one(visit: Visit) -> Response:
    """Do what a form asks for: redrive a dead letter, seek, resume after a stop, or end the subscription."""
    form, name = visit.form, visit.call.path_params["subscription"]
    task = pages.chosen_task(SubscriptionTask, form.get("do", ""))
    try:
        await _do(visit, task)
    except Problem as problem:
        return await pages.refuse_with(
            visit, problem, await _page(visit, place=form.get("place", "head"), problem=problem.without_trace())
        )
    address = f"{visit.place.root}{FOLDER}" if task is SubscriptionTask.END else _address(visit, name)
    return pages.redirect(f"{address}?outcome={task}")


async def _do(visit: Visit, task: SubscriptionTask) -> None:
    form, name = visit.form, visit.call.path_params["subscription"]
    match task:
        case SubscriptionTask.REDRIVE:
            path_params = {"subscription": name, "letter": form.get("letter", "")}
            await verbs.ask(visit, api.post_redrive, path_params=path_params)
        case SubscriptionTask.SEEK:
            place = form.get("place", "") or form.get("cursor", "").strip()
            await verbs.ask(visit, api.post_seek, body={"cursor": place})
        case SubscriptionTask.RESUME:
            document = await verbs.show(visit, api.get_subscription)
            body = {member: document[member] for member in RESUMING}
            await verbs.ask(visit, api.put_subscription, body=body)
        case SubscriptionTask.END:
            if form.get("confirmation", "").strip() != name:
                raise BadRequest(f"nothing was ended: type {name} to confirm it")
            await verbs.ask(visit, api.delete_subscription)
