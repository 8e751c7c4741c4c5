"""Grants, as exchanges: who may have the files of controlled datasets, until when.

    until = "2027-01-31T00:00:00Z"
    client.give_grant({"subject": "person:8f14…", "dataset": "CMIP6/CMIP6.….v20201018", "valid_until": until})
    client.check_grant("CMIP6/CMIP6.….v20201018", subject="person:8f14…")
    client.withdraw_grants({"dataset": "CMIP6/CMIP6.….v20201018"}, reason="the embargo is over")

Client and AsyncClient are made of these functions, as of those in client/changes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

import orjson

from fedstac.client.transport import Exchange, ServerCall, json_of
from fedstac.domain.model import moment

AT_ONCE: Final = 1000  # grants of one request of an import; the server takes twice as many
PAGE: Final = 1000
JSON: Final = {"Content-Type": "application/json"}
LINES: Final = {"Content-Type": "application/x-ndjson"}


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
    return (yield from _read(ServerCall("POST", "/grants", content=orjson.dumps(grant), headers=JSON)))


def grants(
    conditions: Mapping[str, str] | None = None, *, after: str = "", limit: int = PAGE
) -> Exchange[list[dict[str, Any]]]:  # fmt: skip
    """Return the next grants after an id, in the order in which they were given; none behind the last one.

    conditions: subject, dataset, lineage, project, state, format, as GET /grants takes them.
    """
    params = {**(conditions or {}), "limit": limit, **({"after": after} if after else {})}
    page = yield from _read(ServerCall("GET", "/grants", params))
    return list(page["visas"] if "visas" in page else page["grants"])


def check_grant(dataset: str, *, subject: str = "", iss: str = "", sub: str = "") -> Exchange[datetime | None]:
    """Return until when somebody may have the files of a dataset, CMIP6/id; None where no grant opens it now.

    They are named by `subject`, as the logs have it, or by issuer and subject of their tokens.
    """
    who = {name: value for name, value in (("subject", subject), ("iss", iss), ("sub", sub)) if value}
    answer = yield from _read(ServerCall("GET", "/grants/check", {"dataset": dataset, **who}))
    return moment(answer["valid_until"])


def withdraw_grant(id: str, *, reason: str = "") -> Exchange[dict[str, Any]]:
    """Withdraw a grant and return it as it is then; again it changes nothing."""
    params = {"reason": reason} if reason else {}
    return (yield from _read(ServerCall("DELETE", f"/grants/{quote(id, safe='')}", params)))


def withdraw_grants(conditions: Mapping[str, str], *, reason: str = "") -> Exchange[int]:
    """Withdraw all open grants of a subject, a dataset, a lineage or a project, and return how many were open."""
    params = {**conditions, **({"reason": reason} if reason else {})}
    answer = yield from _read(ServerCall("DELETE", "/grants", params))
    return int(answer["withdrawn"])


def import_grants(
    lines: Iterable[bytes], *, on_part: Callable[[GrantImport], None] = no_report
) -> Exchange[GrantImport]:
    """Give the grants of lines of NDJSON, in parts, and return what became of them; `on_part` is told after each part.

    What is there already is not given again: an import that was interrupted is sent anew.
    """
    so_far, first, remaining = GrantImport(), 0, iter(lines)
    while part := list(islice(remaining, AT_ONCE)):
        call = ServerCall("POST", "/grants/import", content=b"\n".join(part), headers=LINES)
        answer = yield from _read(call)
        refusals = tuple({**each, "line": each["line"] + first} for each in answer["refused"])
        so_far = GrantImport(
            so_far.new_count + answer["given"], so_far.present_count + answer["present"], so_far.refusals + refusals
        )
        first += len(part)
        on_part(so_far)
    return so_far


def _read(call: ServerCall) -> Exchange[dict[str, Any]]:
    response = yield call
    document: dict[str, Any] = json_of(response, call.path)
    return document
