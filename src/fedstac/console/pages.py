"""Answers to visits: pages from templates, JSON twins, refusals as pages; what a page may load, in its headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache, wraps
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import ImmutableMultiDict
from starlette.responses import HTMLResponse, Response

from fedstac.api.call import Call
from fedstac.api.http import links, preconditions
from fedstac.api.http.documentation import prefers_html
from fedstac.api.http.media_types import Accept
from fedstac.api.route import Handler
from fedstac.api.writing import refusals
from fedstac.console import assets, visits
from fedstac.console.visits import Visit
from fedstac.domain.errors import BadRequest, Problem, Unauthenticated
from fedstac.runtime import budget
from fedstac.runtime.budget import Lane

MAY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": MAY, "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send no Origin with forms
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
KEEP = "private, no-cache"  # of polls: browsers ask again each time. Whole pages are kept nowhere
TWIN = ".json"
HTMX = orjson.dumps({  # no style and no script of its own making; a page that is the same stays as it is
    "includeIndicatorStyles": False, "allowEval": False, "allowScriptTags": False, "selfRequestsOnly": True,
    "historyCacheSize": 0,
    "responseHandling": [
        {"code": "204", "swap": False}, {"code": "304", "swap": False}, {"code": "2..", "swap": True},
        {"code": "[345]..", "swap": False, "error": True},
    ],
}).decode()  # fmt: skip
AUDIT_NAME = "console"  # the action of forms that were refused, in the audit log
TABS = (  # path, title
    ("deletions", "Deletions"), ("rules", "Configuration"), ("quarantine", "Quarantine"), ("loads", "Loads"),
    ("subscriptions", "Subscriptions"), ("grants", "Grants"),
)  # fmt: skip

View = Callable[[Visit], Awaitable[Response]]
Task = TypeVar("Task", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class ConsolePage:
    """What a page shows. document: its JSON twin, as the API answers. live: the template of what renews itself."""

    template: str
    document: Any
    content: Mapping[str, object] = field(default_factory=dict)
    live: str = ""
    status: int = 200


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("fedstac.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    templates.globals.update(asset=_asset_name, htmx_settings=HTMX, tabs=TABS, csrf_field=visits.CSRF)
    templates.filters.update(
        age=age, json=lambda value: orjson.dumps(value).decode(), quoted=lambda text: quote(str(text), safe=""),
    )  # fmt: skip
    return templates


def _asset_name(source: str) -> str:
    """Return the name under which a file is served; "" where setup could not fetch it."""
    asset = assets.by_source().get(source)
    return asset.served_as if asset else ""


def age(moment: str, now: datetime) -> str:
    """Return how long ago a moment is, of RFC 3339, in its largest unit."""
    seconds = int((now - datetime.fromisoformat(moment)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= length:
            return f"{abs(seconds) // length} {unit}"
    return "now"


# --- answers ---


def show(visit: Visit, page: ConsolePage) -> Response:
    """Answer with a page; with its document where the visitor wants JSON; with what is new of it where it polls."""
    if wants_json(visit.call):
        return _tagged(visit, orjson.dumps(page.document), links.JSON, status=page.status)
    content = {"document": page.document, "now": datetime.now(UTC), **_common(visit), **page.content}
    if not page.live:
        return html(visit, page.template, content, status=page.status)
    inner = _templates().get_template(page.live).render(content)
    tag = preconditions.tag_of(inner.encode())
    if visit.is_poll and preconditions.is_unchanged(visit.call.headers, tag):
        return Response(status_code=304, headers={**HEADERS, "ETag": tag, "Cache-Control": KEEP})
    renewal = orjson.dumps({"If-None-Match": tag}).decode()
    live = _templates().get_template("live.html").render(inner=inner, address=visit.address, renewal=renewal)
    if visit.is_poll:
        headers = {**HEADERS, "ETag": tag, "Cache-Control": KEEP, "Vary": "HX-Request, Cookie"}
        return HTMLResponse(live, headers=headers)
    return html(visit, page.template, {**content, "live": live}, status=page.status)


def html(visit: Visit, template: str, content: Mapping[str, object], *, status: int = 200) -> Response:
    """Answer with a whole page."""
    body = _templates().get_template(template).render({**_common(visit), **content})
    return _tagged(visit, body.encode(), "text/html; charset=utf-8", status=status)


def _tagged(visit: Visit, body: bytes, media_type: str, *, status: int) -> Response:
    headers = {**HEADERS, "Cache-Control": "no-store", "Vary": "Accept, Cookie, HX-Request"}
    if status == 200 and visit.call.method == "GET":
        return preconditions.serve(visit.call.headers, body, media_type, headers)
    return Response(body, status, headers, media_type)


def chosen_task(tasks: type[Task], text: str) -> Task:
    """Return the task that a form names. BadRequest where it is none of them."""
    try:
        return tasks(text)
    except ValueError:
        raise BadRequest(f"do={text[:20]!r} is not one of {', '.join(tasks)}; go back and choose one") from None


def redirect(url: str) -> Response:
    """Send the browser elsewhere, with GET."""
    return Response(status_code=303, headers={**HEADERS, "Location": url, "Cache-Control": "no-store"})


def _common(visit: Visit) -> dict[str, object]:
    session, place = visit.session, visit.place
    path = visit.call.path.partition(visits.FOLDER)[2]
    return {
        "root": place.root, "node": place.node, "csrf": session.csrf if session else "", "path": path,
        "caller": session.principal if session else None, "address": visit.address,
    }  # fmt: skip


def wants_json(call: Call) -> bool:
    """Return whether a visitor wants the JSON twin of a page: by its name, or as the header Accept says."""
    asks_for_json = Accept(call.headers).own_weight(links.JSON) > 0
    return call.path.endswith(TWIN) or (asks_for_json and not prefers_html(call.headers))


# --- views as handlers of routes ---


def handler(view: View, *, needs_session: bool = True) -> Handler:
    """Return the handler of a route that answers visits. What is refused is a page, and for JSON a problem document.

    A form is read and checked before the view gets it, where it needs a session.
    """

    @wraps(view)
    async def handle(call: Call) -> Response:
        visit = Visit(call, visits.place_of(call), None)
        try:
            session = await visits.find_session(call)
            if session is not None and call.method == "GET" and (request := budget.current()) is not None:
                request.lane = Lane.READER  # until here it was anybody's
            visit = Visit(call, visit.place, session)
            if session is None and needs_session:
                return _to_login(visit)
            if session is not None and needs_session and call.method == "POST":
                form = await visits.read_form(call)
                visits.check_source(call, form, session.csrf)
                visit = Visit(call, visit.place, session, form)
            return await view(visit)
        except Problem as problem:
            await note_refusal(visit, problem)
            if wants_json(call):
                raise
            return refusal(visit, problem)

    return handle


def _to_login(visit: Visit) -> Response:
    if wants_json(visit.call):
        raise Unauthenticated("log in at the console, or ask the API with a bearer token")
    target = visit.address if visit.call.method == "GET" else visit.place.root
    login = f"{visit.place.root}/login?{urlencode({'next': target})}"
    if visit.is_poll:
        return Response(status_code=401, headers={**HEADERS, "HX-Refresh": "true", "Cache-Control": "no-store"})
    return redirect(login)


async def refuse_with(visit: Visit, problem: Problem, page: Response) -> Response:
    """Write down that a form was refused, and return the page that says so.

    The page is there before: what is raised while it is made leaves a row of its own, and the form none.
    """
    await note_refusal(visit, problem)
    return page


async def note_refusal(visit: Visit, problem: Problem) -> None:
    """Write down that a form was refused, as the API does with writes. What is looked at only leaves no row."""
    call = visit.call
    if call.method == "POST" and not call.progress.is_accepted:
        await call.services.refusals.note(refusals.entry(
            AUDIT_NAME, problem, call.progress, path_params=call.path_params, request_id=call.request_id
        ))  # fmt: skip


def refusal(visit: Visit, problem: Problem) -> Response:
    """Answer with a page that says what is refused, why, and what to do."""
    if visit.is_poll and problem.status in (403, 404):  # the whole page says so, and shows no longer what it did
        return Response(status_code=problem.status, headers={**HEADERS, "HX-Refresh": "true"})
    answer = html(visit, "refusal.html", {"problem": problem}, status=problem.status)
    if problem.retry_after is not None:
        answer.headers["retry-after"] = str(problem.retry_after)
    return answer


# --- what several tabs need ---


@dataclass(frozen=True, slots=True)
class PageQuery:
    """The parameters of a page, as links of the page repeat them."""

    parameters: ImmutableMultiDict[str, str]

    @classmethod
    def of(cls, visit: Visit) -> PageQuery:
        return cls(visit.call.query_params)

    def get(self, name: str) -> str:
        return str(self.parameters.get(name, "")).strip()

    def link(self, **changes: object) -> str:
        """Return the query with other values; "" takes a parameter away."""
        values = {name: value for name, value in self.parameters.items() if name not in changes}
        values |= {name: str(value) for name, value in changes.items()}
        return "?" + urlencode({name: value for name, value in values.items() if value})


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of a task for one of several: it is done, it waits for its turn, or the problem.

    about: what the task was for, as the JSON twin names it; its `dataset` is shown.
    """

    about: Mapping[str, str]
    problem: Problem | None = None
    is_queued: bool = False

    @property
    def is_done(self) -> bool:
        return self.problem is None and not self.is_queued

    def as_json(self) -> dict[str, object]:
        problem = self.problem
        return {
            **self.about, "problem": problem.name if problem else None, "detail": problem.detail if problem else None,
            "queued": self.is_queued,
        }  # fmt: skip


def show_results(
    visit: Visit, task: StrEnum, results: Sequence[TaskResult], *, folder: str, list_name: str
) -> Response:  # fmt: skip
    """Show what became of a task for each of several. folder: of the tab, with the list they were chosen in."""
    document = {"results": [each.as_json() for each in results]}
    content = {"task": task, "results": results, "folder": folder, "list_name": list_name}
    return show(visit, ConsolePage("task_results.html", document, content))
