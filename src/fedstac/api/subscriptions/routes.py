"""The routes of subscriptions and of changes since a place of the log."""

from __future__ import annotations

from typing import Any

from fedstac.api import parameters
from fedstac.api.capability import Capability
from fedstac.api.route import Access, Answer, BodyFormat, Handler, Route
from fedstac.api.subscriptions import changes, subscriptions
from fedstac.domain.errors import Conflict, CursorGone, NotFound, TooManyRequests

ONE = "/subscriptions/{subscription}"
_SUBSCRIPTION = Answer.of(200, "The subscription.", "Subscription")


def _own(method: str, path: str, handler: Handler, *answers: Answer, schema: str = "", **values: Any) -> Route:
    """Return a route for whoever has a token: what they see is their own. schema: of the body, where there is one."""
    body = BodyFormat.of(schema) if schema else None
    return Route(
        method=method, path=path, handler=handler, access=Access.AUTHENTICATED, answers=answers, body=body, **values
    )


SUBSCRIPTIONS = Capability(
    name="subscriptions",
    description="Events of the log that somebody wants: a filter, and a place that the server keeps.",
    routes=(
        _own(
            "GET", "/subscriptions", subscriptions.get_subscriptions,
            Answer.of(200, "Subscriptions.", "Subscriptions"), parameters=parameters.SUBSCRIPTIONS,
        ),
        _own(
            "PUT", ONE, subscriptions.put_subscription,
            Answer.of(201, "The new subscription.", "Subscription", headers=("Location",)),
            Answer.of(200, "The subscription, which was there.", "Subscription", headers=("Location",)),
            schema="NewSubscription", problems=(Conflict, CursorGone, TooManyRequests),
        ),
        _own("GET", ONE, subscriptions.get_subscription, _SUBSCRIPTION, problems=(NotFound,)),
        _own("DELETE", ONE, subscriptions.delete_subscription, Answer(204, "It is gone."), problems=(NotFound,)),
        _own(
            "GET", ONE + "/next", subscriptions.get_next, Answer.of(200, "Events, and their lease.", "NextEvents"),
            parameters=parameters.NEXT_EVENTS, problems=(NotFound, Conflict, CursorGone), reads=False,
            logs_refusals=False,
        ),
        _own(
            "POST", ONE + "/ack", subscriptions.post_ack, Answer.of(200, "Where the subscription is.", "AckedPlace"),
            schema="Ack", problems=(NotFound, Conflict),
        ),
        _own(
            "POST", ONE + "/nack", subscriptions.post_nack, Answer.of(200, "When it is given again.", "MissedEvent"),
            schema="Nack", problems=(NotFound,),
        ),
        _own(
            "POST", ONE + "/seek", subscriptions.post_seek, _SUBSCRIPTION, schema="SubscriptionSeek",
            problems=(NotFound, CursorGone),
        ),
        _own(
            "GET", ONE + "/dead-letters", subscriptions.get_dead_letters,
            Answer.of(200, "Dead letters.", "MissedEvents"), parameters=parameters.MISSED_EVENTS, problems=(NotFound,),
        ),
        _own(
            "POST", ONE + "/dead-letters/{letter}/redrive", subscriptions.post_redrive,
            Answer.of(200, "The letter, which waits to be given out.", "MissedEvent"), problems=(NotFound, Conflict),
        ),
    ),
)  # fmt: skip

CHANGES = Capability(
    name="changes",
    description="What changed since a place of the log, deletions included.",
    routes=(
        Route(
            method="GET", path="/changes", handler=changes.get_changes, access=Access.PUBLIC,
            parameters=parameters.CHANGES, answers=(Answer.of(200, "Changes, the oldest first.", "Changes"),),
            problems=(CursorGone, TooManyRequests),
        ),
    ),
)  # fmt: skip

CAPABILITIES = (SUBSCRIPTIONS, CHANGES)
