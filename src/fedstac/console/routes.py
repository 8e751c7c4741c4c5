"""The routes of the console. OpenAPI does not describe them: they are for browsers."""

from __future__ import annotations

from fedstac.api.capability import Capability
from fedstac.api.route import Access, BodyFormat, Route, Size
from fedstac.console import (
    assets,
    deletions,
    grants,
    home,
    loads,
    login,
    pages,
    quarantine,
    rules,
    subscriptions,
    visits,
)
from fedstac.console.pages import View
from fedstac.runtime.budget import Lane

FORM = BodyFormat(Size.SMALL, {visits.FORM: ("Form",)})


def _get(path: str, view: View, *, needs_session: bool = True) -> Route:
    return Route(
        method="GET", path=visits.FOLDER + path, handler=pages.handler(view, needs_session=needs_session),
        access=Access.PUBLIC,
    )  # fmt: skip


def _post(path: str, view: View, *, needs_session: bool = True) -> Route:
    return Route(
        method="POST", path=visits.FOLDER + path, handler=pages.handler(view, needs_session=needs_session),
        access=Access.PUBLIC, body=FORM, logs_refusals=False,  # pages.note_refusal does
    )  # fmt: skip


def _with_twin(path: str, view: View) -> tuple[Route, Route]:
    """Return the routes of a page and of its JSON twin."""
    return _get(path + pages.TWIN, view), _get(path, view)


CONSOLE = Capability(
    name="console",
    description="Pages for people, over the same verbs as the API.",
    routes=(
        _get("", home.get_home),
        _get("/login", login.get_login, needs_session=False),
        _get("/login/start", login.get_start, needs_session=False),
        _get("/callback", login.get_callback, needs_session=False),
        _post("/login", login.post_login, needs_session=False),
        _post("/logout", login.post_logout),
        *_with_twin("/deletions", deletions.get_list),
        _get("/deletions/act", deletions.get_task),
        _post("/deletions/act", deletions.post_task),
        *_with_twin("/deletions/{deletion}", deletions.get_one),
        *_with_twin("/rules", rules.get_all),
        *_with_twin("/rules/{project}", rules.get_one),
        _post("/rules/{project}", rules.post_one),
        *_with_twin("/quarantine", quarantine.get_list),
        _get("/quarantine/new", quarantine.get_form),
        _post("/quarantine/new", quarantine.post_form),
        _get("/quarantine/act", quarantine.get_task),
        _post("/quarantine/act", quarantine.post_task),
        *_with_twin("/loads", loads.get_list),
        *_with_twin("/loads/{load_id}", loads.get_one),
        _post("/loads/{load_id}", loads.post_one),
        *_with_twin("/loads/{load_id}/datasets", loads.get_datasets),
        *_with_twin("/subscriptions", subscriptions.get_list),
        *_with_twin("/subscriptions/{subscription}", subscriptions.get_one),
        _post("/subscriptions/{subscription}", subscriptions.post_one),
        *_with_twin("/grants", grants.get_list),
        _get("/grants/give", grants.get_form),
        _post("/grants/give", grants.post_form),
        _get("/grants/withdraw", grants.get_withdrawal),
        _post("/grants/withdraw", grants.post_withdrawal),
        *_with_twin("/grants/{grant}", grants.get_one),
        _post("/grants/{grant}", grants.post_one),
        Route(
            method="GET", path=visits.FOLDER + "/assets/{name}", handler=assets.get_asset, access=Access.PUBLIC,
            lane=Lane.ANONYMOUS,
        ),
        _get("/{rest:path}", home.get_nothing),  # last: it takes what no other does
    ),
)  # fmt: skip
