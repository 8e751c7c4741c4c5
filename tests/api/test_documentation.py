"""What a node says of itself: the pages of its problems, and of its routes."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from fedstac.domain import errors
from tests.support.nodes import Api


async def test_the_type_of_every_problem_is_explained(api: Api) -> None:
    listed = (await api.anyone.get("/problems")).json()["problems"]
    assert {each["name"] for each in listed} == {problem.name for problem in errors.problems()}
    for each in listed:
        explanation = (await api.anyone.get(urlsplit(each["type"]).path)).json()
        assert explanation == each
        assert explanation["description"]
    unknown = await api.anyone.get("/problems/none")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not-found")


async def test_browsers_are_shown_pages(api: Api) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path in ("/problems", "/problems/conflict"):
        page = await api.anyone.get(path, headers=browser)
        assert page.headers["content-type"].startswith("text/html")
        assert "In conflict with what is stored" in page.text
        answer = await api.anyone.get(path, headers={"Accept": "text/html;q=0.5, application/json"})
        assert answer.headers["content-type"] == "application/json"


async def test_the_page_of_the_routes_needs_nothing_from_elsewhere(api: Api) -> None:
    page = await api.anyone.get("/api.html")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    references = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"api-assets/swagger-ui-bundle.js", "api-assets/swagger-ui.css", "api-assets/start.js"} <= set(references)
    for reference in references:
        assert "//" not in reference
        answer = await api.anyone.get(f"/{reference}")
        assert answer.status_code == 200, reference
        unchanged = await api.anyone.get(f"/{reference}", headers={"If-None-Match": answer.headers["etag"]})
        assert unchanged.status_code == 304
    assert "SwaggerUIBundle" in (await api.anyone.get("/api-assets/swagger-ui-bundle.js")).text
    assert (await api.anyone.get("/api-assets/none.js")).status_code == 404
