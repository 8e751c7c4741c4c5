"""Grants, as exchanges: who may have the files of controlled datasets, until when.

    until = "2027-01-31T00:00:00Z"
    client.give_grant({"subject": "person:8f14…", "dataset": "CMIP6/CMIP6.….v20201018", "valid_until": until})
    client.check_grant("CMIP6/CMIP6.….v20201018", subject="person:8f14…")
    client.withdraw_grants({"dataset": "CMIP6/CMIP6.….v20201018"}, reason="the embargo is over")

Client and AsyncClient are made of these functions, as of those in client/changes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

import orjson

from fedstac.client.documents import Unreadable
from fedstac.client.transport import JSON_BODY, LINES_BODY, Exchange, NotFound, ServerCall, object_of
from fedstac.domain.model import moment

AT_ONCE: Final = 1000  # grants of one request of an import; the server takes twice as many
PAGE: Final = 1000
ONE_WITHDRAWN, ALL_WITHDRAWN = "withdraw-grant", "withdraw-grants"  # actions in the audit log


@dataclass(frozen=True, slots=True)
class GrantImport:
    """What became of the grants of an import so far. refusals: of lines, numbered from 1, with the problem."""

    new_count: int = 0
    present_count: int = 0
    refusals: tuple[Mapping[str, Any], ...] = ()


def no_report(so_far: GrantImport) -> None:
    """Say nothing about how far an import is."""


def give_grant(grant: Mapping[str, Any]) -> Exchange[dict[str, Any]]:
    """Give a grant and return it; one that is there already is returned as it is. May be sent again."""
    return (yield from object_of(ServerCall("POST", "/grants", content=orjson.dumps(grant), headers=JSON_BODY)))


def grants(
    conditions: Mapping[str, str] | None = None, *, after: str = "", limit: int = PAGE
) -> Exchange[list[dict[str, Any]]]:  # fmt: skip
    """Return the next grants after an id, in the order in which they were given; none behind the last one.

    conditions: subject, dataset, lineage, project, state, format, as GET /grants takes them.
    """
    params = {**(conditions or {}), "limit": limit, **({"after": after} if after else {})}
    page = yield from object_of(ServerCall("GET", "/grants", params))
    return list(page["visas"] if "visas" in page else page["grants"])


def check_grant(dataset: str, *, subject: str = "", iss: str = "", sub: str = "") -> Exchange[datetime | None]:
    """Return until when somebody may have the files of a dataset, CMIP6/id; None where no grant opens it now.

    They are named by `subject`, as the logs have it, or by issuer and subject of their tokens.
    """
    who = {name: value for name, value in (("subject", subject), ("iss", iss), ("sub", sub)) if value}
    answer = yield from object_of(ServerCall("GET", "/grants/check", {"dataset": dataset, **who}))
    return moment(answer["valid_until"])


def withdraw_grant(id: str, *, reason: str = "") -> Exchange[dict[str, Any]]:
    """Withdraw a grant and return it as it is then; again it changes nothing."""
    params = {"reason": reason} if reason else {}
    return (yield from object_of(ServerCall("DELETE", f"/grants/{quote(id, safe='')}", params)))


def withdraw_grants(conditions: Mapping[str, str], *, reason: str = "") -> Exchange[int]:
    """Withdraw all open grants of a subject, a dataset, a lineage or a project, and return how many were open."""
    params = {**conditions, **({"reason": reason} if reason else {})}
    answer = yield from object_of(ServerCall("DELETE", "/grants", params))
    return int(answer["withdrawn"])


def withdraw_again(lines: Iterable[bytes], *, reason: str) -> Exchange[int]:
    """Withdraw what was withdrawn by an export of the audit log, and return how many grants were open.

    After a restore: grants that were withdrawn after the backup are open again. Those of datasets that were deleted
    since are withdrawn too. A grant that is not here, since it was given later, is passed over.
    """
    count = 0
    for each in withdrawals(lines):
        if "id" not in each:
            count += yield from withdraw_grants(each, reason=reason)
            continue
        try:
            grant = yield from object_of(ServerCall("GET", f"/grants/{quote(each['id'], safe='')}"))
        except NotFound:
            continue
        if grant["closed_at"] is None:
            yield from withdraw_grant(each["id"], reason=reason)
            count += 1
    return count


def withdrawals(lines: Iterable[bytes]) -> Iterator[dict[str, str]]:
    """Yield the withdrawals of an export of the audit log, in its order: the id of a grant, or a target.

    Rows of a release before this one do not say whether a target is a dataset or a lineage: both come. Unreadable at a
    line that is no row.
    """
    for number, line in enumerate(lines, 1):
        try:
            row_withdrawals = _withdrawals_of(orjson.loads(line))
        except (LookupError, TypeError, ValueError, AttributeError):
            raise Unreadable(
                f"line {number} is no row of an export of the audit log: it is cut off, or damaged. What the lines"
                " before it say is withdrawn; repeat it with a whole export"
            ) from None
        yield from row_withdrawals


def _withdrawals_of(row: Mapping[str, Any]) -> list[dict[str, str]]:
    if row.get("outcome") != "done" or row.get("action") not in (ONE_WITHDRAWN, ALL_WITHDRAWN):
        return []
    collection, name = row["collection"], row["dataset"]
    if row["action"] == ONE_WITHDRAWN:
        return [{"id": name.removeprefix("grant/")}]
    detail = orjson.loads(row["detail"] or "{}")
    target = {scope: detail[scope] for scope in ("dataset", "lineage", "project") if scope in detail}
    if target:
        return [target]
    if name == collection:
        return [{"project": name}]
    place = name if name.startswith(f"{collection}/") else f"{collection}/{name}"
    return [{scope: place} for scope in ("dataset", "lineage")]


@dataclass(frozen=True, slots=True)
class PrivatePage:
    """Private datasets, each as GET /private gives it. token: of the next page; "" behind the last one."""

    datasets: tuple[Mapping[str, Any], ...]
    token: str = ""


def private_datasets(collection: str = "", *, token: str = "", limit: int = PAGE) -> Exchange[PrivatePage]:
    """Return a page of the private datasets that the caller has a right to, by collection and id.

    collection: those of one alone. token: that of the page before.
    """
    parameters = {name: value for name, value in (("collection", collection), ("token", token)) if value}
    page = yield from object_of(ServerCall("GET", "/private", {**parameters, "limit": limit}))
    href = next((link["href"] for link in page["links"] if link["rel"] == "next"), "")
    return PrivatePage(tuple(page["datasets"]), dict(parse_qsl(urlsplit(href).query)).get("token", ""))


def import_grants(
    lines: Iterable[bytes], *, on_part: Callable[[GrantImport], None] = no_report
) -> Exchange[GrantImport]:
    """Give the grants of lines of NDJSON, in parts, and return what became of them; `on_part` is told after each part.

    What is there already is not given again: an import that was interrupted is sent anew.
    """
    so_far, first, remaining = GrantImport(), 0, iter(lines)
    while part := list(islice(remaining, AT_ONCE)):
        call = ServerCall("POST", "/grants/import", content=b"\n".join(part), headers=LINES_BODY)
        answer = yield from object_of(call)
        refusals = tuple({**each, "line": each["line"] + first} for each in answer["refused"])
        so_far = GrantImport(
            so_far.new_count + answer["given"], so_far.present_count + answer["present"], so_far.refusals + refusals
        )
        first += len(part)
        on_part(so_far)
    return so_far
