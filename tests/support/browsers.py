"""The distribution's Chromium, headless, and what axe says of a page in it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, async_playwright

from tests.support.places import REPOSITORY
from tests.support.waiting import PATIENCE

AXE = REPOSITORY / ".venv" / "axe-core" / "axe.min.js"
# of a machine without a graphics card; what Chromium asks its maker for by itself is no request of a page
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


def missing() -> str:
    """Return what is missing for tests in a browser, and how to get it; "" where all is there."""
    if shutil.which("chromium") is None:
        return "chromium is not here: install that of the distribution"
    return "" if AXE.is_file() else "axe-core is not here: make setup fetches it, with npm"


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


@dataclass(slots=True)
class Window:
    """A window of somebody, and the hosts of all that it asked for."""

    page: Page
    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    async def complaints(self) -> list[str]:
        """Return what axe finds serious or critical on the page."""
        await self.page.evaluate(_axe())
        result = await self.page.evaluate("async () => await axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
            for each in result["violations"] if each["impact"] in ("serious", "critical") for node in each["nodes"]
        ]  # fmt: skip

    async def is_too_wide(self) -> bool:
        """Return whether the page has to be scrolled sideways."""
        return bool(await self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


@cache
def _axe() -> str:
    return AXE.read_text()


@asynccontextmanager
async def window(browser: Browser, base_url: str, **options: object) -> AsyncIterator[Window]:
    """Open a window with cookies of its own. All that it asks for, and errors of scripts and policies, are recorded."""
    context = await browser.new_context(base_url=base_url, **options)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE * 1000)
    page = await context.new_page()
    opened = Window(page)
    context.on("request", lambda request: opened.hosts.add(urlsplit(request.url).hostname or request.url[:40]))
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on("console", lambda line: opened.errors.append(line.text) if "Content Security" in line.text else None)
    try:
        yield opened
    finally:
        await context.close()
