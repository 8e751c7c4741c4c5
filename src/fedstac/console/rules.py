"""The tab of the configuration: for each project who acknowledges a deletion, how long a mark can be taken back."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.datastructures import ImmutableMultiDict
from starlette.responses import Response

from fedstac.api.deletions import manager
from fedstac.console import pages
from fedstac.console.pages import ConsolePage, PageQuery
from fedstac.console.visits import Visit
from fedstac.db import collections, deletion_rules
from fedstac.domain import collections as collection_rules
from fedstac.domain import deletion
from fedstac.domain.deletion import NO_RULES, DeletionRules, Dependency
from fedstac.domain.errors import BadRequest, Problem
from fedstac.domain.policy import Action, Resource
from fedstac.workers import deleting

FOLDER = "/rules"
EMPTY_ROWS = 3  # for new dependencies, without a script
MOST_ROWS = deletion.MOST_DEPENDENCIES + EMPTY_ROWS
PREFIX = "dependency"


async def get_all(visit: Visit) -> Response:
    """Show the projects and their rules."""
    caller = manager.caller_of(visit.call)
    async with visit.call.node.pool.acquire() as conn:
        every = await deleting.all_rules(conn, caller)
        names = await collections.names(conn)
    mine = [name for name in names if caller.may((Action.DELETIONS,), Resource.of_collection(name))]
    document = {"rules": [deleting.rules_document(each) for each in every]}
    content = {"projects": mine, "by_project": {each["project"]: each for each in document["rules"]}}
    return pages.show(visit, ConsolePage("all_rules.html", document, content))


async def get_one(visit: Visit) -> Response:
    """Show the rules of a project in a form."""
    project, call = visit.call.path_params["project"], visit.call
    caller = manager.caller_of(call)
    caller.require(Action.DELETIONS, Resource.of_collection(project))
    async with call.node.pool.acquire() as conn:
        newest = await deletion_rules.stored_rules(conn, project)
        if await collections.get(conn, project) is None:
            raise collection_rules.missing(project)
        if newest is None and pages.wants_json(call):
            raise deleting.no_rules(project)
        versions = [deleting.rules_document(each) for each in await deleting.versions(conn, caller, project)]
    rules = newest.rules if newest else NO_RULES
    document = deleting.rules_document(newest) if newest else {}
    history = [{name: value for name, value in each.items() if name != "rules"} for each in versions]
    content = {
        **_form_content(project, _as_fields(rules), rules.version), "newest": document,
        "is_saved": PageQuery.of(visit).get("saved"), "versions": history,
    }  # fmt: skip
    return pages.show(visit, ConsolePage("rules.html", {**document, "versions": history}, content))


async def post_one(visit: Visit) -> Response:
    """Show what other rules of a project touch; store them where that was shown."""
    project, form = visit.call.path_params["project"], visit.form
    caller = manager.caller_of(visit.call)
    caller.require(Action.DELETIONS, Resource.of_collection(project))
    version = _version(form)
    if form.get("step") == "change":  # back from the preview
        return await _form_page(visit, project, form, version)
    try:
        wish = deletion.read_rules(_as_json(form))
        async with visit.call.node.pool.acquire() as conn:
            if form.get("step") != "save":
                affected = await deleting.affected_by(conn, caller, project, wish)
                return _preview(visit, project, form, version, deleting.affected_document(affected, project))
            applies = form.get("apply_to_open") == "on"
            await deleting.configure(conn, caller, project, wish, expected=version, apply_to_open=applies)
    except Problem as problem:
        await pages.note_refusal(visit, problem)
        return await _form_page(visit, project, form, version, problem)
    return pages.redirect(f"{visit.place.root}{FOLDER}/{quote(project, safe='')}?saved=true")


def _preview(
    visit: Visit, project: str, form: ImmutableMultiDict[str, str], version: int, document: dict[str, Any]
) -> Response:
    fields = [(name, value) for name, value in form.multi_items() if name not in ("csrf", "step", "apply_to_open")]
    content = {"project": project, "fields": fields, "version": version}
    return pages.show(visit, ConsolePage("rules_preview.html", document, content))


async def _form_page(
    visit: Visit, project: str, form: ImmutableMultiDict[str, str], version: int, problem: Problem | None = None
) -> Response:
    """Show the form as it was sent, and what is wrong with it."""
    fields = {**{name: form.get(name, "") for name in ("grace_days", "automatic", "schedule")}, "rows": _rows(form)}
    async with visit.call.node.pool.acquire() as conn:
        newest = await deletion_rules.stored_rules(conn, project)
    content = {
        **_form_content(project, fields, version), "newest": deleting.rules_document(newest) if newest else {},
        "is_saved": "", "versions": [],
    }  # fmt: skip
    status = problem.status if problem else 200
    page = ConsolePage("rules.html", {}, {**content, "problem": problem}, status=status)
    return pages.show(visit, page)


def _form_content(project: str, fields: dict[str, Any], version: int) -> dict[str, Any]:
    empty = {"name": "", "required": "on", "days": f"{deletion.TIMEOUT_DAYS:g}", "contact": "", "owns_identifier": ""}
    rows = [*fields["rows"], *([empty] * EMPTY_ROWS)]
    return {"project": project, "fields": fields, "rows": rows[:MOST_ROWS], "version": version, "problem": None,
            "prefix": PREFIX}  # fmt: skip


# --- rules as fields of a form, and back ---


def _as_fields(rules: DeletionRules) -> dict[str, Any]:
    return {
        "grace_days": f"{rules.grace_days:g}", "automatic": "on" if rules.automatic else "",
        "schedule": rules.schedule, "rows": [_row(each) for each in rules.dependencies],
    }  # fmt: skip


def _row(each: Dependency) -> dict[str, str]:
    return {
        "name": each.name, "required": "on" if each.required else "", "days": f"{each.days:g}",
        "contact": each.contact or "", "owns_identifier": "on" if each.owns_identifier else "",
    }  # fmt: skip


def _rows(form: ImmutableMultiDict[str, str]) -> list[dict[str, str]]:
    """Return the dependencies that a form names; those to be removed, and rows without a name, are left out."""
    rows = []
    for number in range(MOST_ROWS):
        row = {
            name: str(form.get(f"{PREFIX}-{number}-{name}", "")).strip()
            for name in ("name", "required", "days", "contact", "owns_identifier", "remove")
        }  # fmt: skip
        if row["name"] and not row.pop("remove"):
            rows.append(row)
    return rows


def _as_json(form: ImmutableMultiDict[str, str]) -> dict[str, Any]:
    return {
        "dependencies": [
            {
                "name": row["name"], "required": row["required"] == "on", "days": _number(row["days"]),
                "contact": row["contact"] or None, "owns_identifier": row["owns_identifier"] == "on",
            }
            for row in _rows(form)
        ],
        "grace_days": _number(str(form.get("grace_days", ""))), "automatic": form.get("automatic") == "on",
        "schedule": str(form.get("schedule", "")).strip(),
    }  # fmt: skip


def _number(text: str) -> float | str:
    """Return the number of a text; the text itself where it is none, for the rules to say so."""
    try:
        number = float(text.strip())
    except ValueError:
        return text
    return number if abs(number) < 1e9 else text


def _version(form: ImmutableMultiDict[str, str]) -> int:
    text = str(form.get("version", ""))
    if not text.isdecimal() or len(text) > 9:
        raise BadRequest("the form does not say which version it is of; load the page again")
    return int(text)
