"""Grants, for the client: who may have the files of controlled datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

import orjson

from fedstac.client.transport import Transport
from fedstac.domain.model import moment

AT_ONCE: Final = 1000  # grants of one request of an import; the server takes twice as many
PAGE: Final = 1000
LINES: Final = {"Content-Type": "application/x-ndjson"}


@dataclass(frozen=True, slots=True)
class GrantImport:
    """What became of the grants of an import so far. refusals: of lines, numbered from 1, with the problem."""

    new_count: int
    present_count: int
    refusals: tuple[Mapping[str, Any], ...]


def give(server: Transport, grant: Mapping[str, Any]) -> dict[str, Any]:
    """Give a grant and return it; one that is there already is returned as it is. May be sent again."""
    headers = {"Content-Type": "application/json"}
    answer: dict[str, Any] = server.json("POST", "/grants", content=orjson.dumps(grant), headers=headers)
    return answer


def every(server: Transport, parameters: Mapping[str, str], *, most: int = 0) -> Iterator[dict[str, Any]]:
    """Yield grants, page by page, in the order in which they were given; `most` of them, 0: all.

    parameters: subject, dataset, lineage, project, state, format, as GET /grants takes them.
    """
    return islice(_every(server, most, parameters), most or None)


def _every(server: Transport, most: int, parameters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    after: dict[str, str] = {}
    while True:
        limit = str(min(most or PAGE, PAGE))
        page = server.json("GET", "/grants", params={**parameters, **after, "limit": limit})
        entries = page["visas"] if "visas" in page else page["grants"]
        yield from entries
        if not page["links"]:
            return
        after = {"after": entries[-1].get("id") or entries[-1]["jti"]}


def withdraw(server: Transport, id: str, *, reason: str = "") -> dict[str, Any]:
    """Withdraw a grant and return it as it is then; again it changes nothing."""
    parameters = {"reason": reason} if reason else {}
    answer: dict[str, Any] = server.json("DELETE", f"/grants/{quote(id, safe='')}", params=parameters)
    return answer


def withdraw_matching(server: Transport, **parameters: str) -> int:
    """Withdraw all open grants of a subject, a dataset, a lineage or a project, and return how many were open."""
    return int(server.json("DELETE", "/grants", params=parameters)["withdrawn"])


def check(server: Transport, dataset: str, **who: str) -> datetime | None:
    """Return until when somebody may have the files of a dataset, CMIP6/id; None where they may not.

    who: subject, or iss and sub.
    """
    return moment(server.json("GET", "/grants/check", params={"dataset": dataset, **who})["valid_until"])


def give_many(server: Transport, lines: Iterable[bytes]) -> Iterator[GrantImport]:
    """Give the grants of lines of NDJSON, in parts; yield what became of them so far after each part.

    What is there already is not given again: an import that was interrupted is sent anew.
    """
    new_count = present_count = first = 0
    refusals: list[Mapping[str, Any]] = []
    remaining = iter(lines)
    while part := list(islice(remaining, AT_ONCE)):
        answer = server.json("POST", "/grants/import", content=b"\n".join(part), headers=LINES)
        new_count, present_count = new_count + answer["given"], present_count + answer["present"]
        refusals += [{**each, "line": each["line"] + first} for each in answer["refused"]]
        first += len(part)
        yield GrantImport(new_count, present_count, tuple(refusals))
