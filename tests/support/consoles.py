"""People at the console, with a browser that has cookies and no script."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.support.waiting import PATIENCE

Fields = Mapping[str, str | list[str]]
HTML = "text/html,application/xhtml+xml,*/*;q=0.8"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody's browser. Redirects are not followed by themselves: tests look at them."""

    url: str
    http: httpx.AsyncClient

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.http.get(path, headers={"Accept": HTML, **headers})

    async def json(self, path: str) -> Any:
        answer = await self.http.get(path, headers={"Accept": "application/json"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def begin_login(self, person: str) -> str:
        """Log in at the provider, and return the address to which it sends the browser back."""
        page = await self.get("/console/login")
        [start] = re.findall(r'href="(/console/login/start[^"]*)"', page.text)
        away = await self.get(html.unescape(start))
        assert away.status_code == 303, away.text
        back = await self.http.post(away.headers["location"], data={"subject": person})
        assert back.status_code == 303, back.text
        return str(back.headers["location"])

    async def log_in(self, person: str) -> httpx.Response:
        answer = await self.get(await self.begin_login(person))
        assert answer.status_code == 303, answer.text
        return answer

    async def csrf(self, path: str) -> str:
        """Return what the forms of a page send to prove where they are from."""
        return csrf_of(await self.get(path))

    async def post(self, path: str, fields: Fields, **headers: str) -> httpx.Response:
        """Send a form as a page of the console does."""
        return await self.http.post(path, data=dict(fields), headers={"Accept": HTML, "Origin": self.url, **headers})

    @property
    def cookie_names(self) -> set[str]:
        return {cookie.name for cookie in self.http.cookies.jar}


@dataclass(frozen=True, slots=True)
class ShownPart:
    """A dependency of a deletion as a page shows it."""

    state: str
    is_late: bool
    comment: str | None
    reminders: int


PART = re.compile(r'<b>([^<]+)</b>\s*<span class="state \w+">([^<]+)</span>(.*?)(?=<b>|</li>)', re.DOTALL)


def parts_of(page: httpx.Response) -> dict[str, ShownPart]:
    """Return the dependencies that a page about one deletion shows, by name."""
    assert page.status_code == 200, page.text
    parts = {}
    for name, state, rest in PART.findall(page.text):
        comments = re.findall(r"<span>([^<]*)</span>", rest)
        reminders = re.findall(r"\((\d+)\)</span>", rest)
        parts[html.unescape(name)] = ShownPart(
            state, '<span class="state bad">late</span>' in rest,
            html.unescape(comments[0]) if comments else None, int(reminders[0]) if reminders else 0,
        )  # fmt: skip
    return parts


OpenBrowser = Callable[[str], Awaitable[Visitor]]


@asynccontextmanager
async def visitor(url: str) -> AsyncIterator[Visitor]:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False) as http:
        yield Visitor(url, http)


def csrf_of(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found, page.text
    return found[1]


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
