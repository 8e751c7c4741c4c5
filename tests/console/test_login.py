"""Login at the console: by the identity provider, or with a token; what a session is, and when it ends."""

from __future__ import annotations

import base64
import re
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg
import pytest

from fedstac.console.visits import ConsolePlace
from tests.support.consoles import OpenBrowser, Visitor, csrf_of, query_of
from tests.support.nodes import Api, StartApi

PAGE = "/console/deletions"
SESSION, ATTEMPT = "fedstac-session-west", "fedstac-login-west"


async def test_who_is_not_logged_in_sees_no_page(west: Api, open_browser: OpenBrowser) -> None:
    browser = await open_browser(west.url)
    for path in ("/console", PAGE, f"{PAGE}?late=true", "/console/rules"):
        answer = await browser.get(path)
        assert answer.status_code == 303
        assert query_of(answer.headers["location"])["next"] == path
        assert answer.content == b""
    assert (await browser.get(f"{PAGE}.json")).status_code == 401
    assert (await browser.http.get(PAGE, headers={"Accept": "application/json"})).status_code == 401
    assert (await browser.post("/console/logout", {})).status_code == 303
    poll = await browser.get(PAGE, **{"HX-Request": "true"})
    assert (poll.status_code, poll.headers["hx-refresh"], poll.content) == (401, "true", b"")


async def test_a_login_opens_a_session_and_a_logout_ends_it(west: Api, open_browser: OpenBrowser) -> None:
    browser = await open_browser(west.url)
    back = await browser.begin_login("ada")
    assert back.startswith(f"{west.url}/console/callback?")
    answer = await browser.get(back)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    cookie = next(value for value in answer.headers.get_list("set-cookie") if value.startswith(f"{SESSION}="))
    attributes = {part.strip() for part in cookie.split(";")[1:]}
    assert {"HttpOnly", "SameSite=Lax", "Path=/console"} <= attributes
    assert "Secure" not in attributes  # http on loopback
    page = await browser.get(PAGE)
    assert page.status_code == 200
    assert "Ada Admin" in page.text
    secret = browser.http.cookies[SESSION]
    conn = await asyncpg.connect(west.settings.dsn)
    row = await conn.fetchrow("SELECT * FROM fedstac.console_session")
    assert row is not None
    assert secret not in str(dict(row))
    assert not str(row["sealed"]).startswith("ey.")
    await conn.close()

    assert (await browser.post("/console/logout", {"csrf": csrf_of(page)})).status_code == 303
    assert SESSION not in browser.cookie_names
    browser.http.cookies.set(SESSION, secret, domain="127.0.0.1", path="/console")
    assert (await browser.get(PAGE)).status_code == 303  # the secret opens nothing any more


async def test_each_login_has_a_new_session_and_ends_the_one_before(west: Api, open_browser: OpenBrowser) -> None:
    browser = await open_browser(west.url)
    back = await browser.begin_login("ada")
    await browser.get(back)
    first = browser.http.cookies[SESSION]
    again = await browser.get(back)  # the code and the attempt work once
    assert again.status_code in (401, 403)
    browser.http.cookies.set(ATTEMPT, "", domain="127.0.0.1", path="/console")
    conn = await asyncpg.connect(west.settings.dsn)
    other = await open_browser(west.url)
    other.http.cookies.set(SESSION, "A" * 43, domain="127.0.0.1", path="/console")  # planted by somebody else
    await other.log_in("nina")
    assert other.http.cookies[SESSION] not in ("A" * 43, first)
    assert await conn.fetchval("SELECT count(*) FROM fedstac.console_session") == 2
    await conn.close()


@pytest.mark.parametrize("part", ["state", "nonce", "verifier"])
async def test_an_answer_to_another_login_is_refused(west: Api, open_browser: OpenBrowser, part: str) -> None:
    browser = await open_browser(west.url)
    back = await browser.begin_login("ada")
    value = browser.http.cookies[ATTEMPT]
    attempt = dict(parse_qsl(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode()))
    attempt[part] = "another" * 7
    forged = base64.urlsafe_b64encode(urlencode(attempt).encode()).rstrip(b"=").decode()
    browser.http.cookies.clear()
    browser.http.cookies.set(ATTEMPT, forged, domain="127.0.0.1", path="/console")
    answer = await browser.get(back)
    assert answer.status_code in (401, 403)
    assert SESSION not in browser.cookie_names


async def test_an_answer_without_a_login_is_refused(west: Api, open_browser: OpenBrowser) -> None:
    browser, other = await open_browser(west.url), await open_browser(west.url)
    back = await other.begin_login("ada")
    assert (await browser.get(back)).status_code == 403  # somebody else's code in this browser
    refused = await browser.begin_login("")
    assert (await browser.get(refused)).status_code == 403
    assert (await browser.get("/console/login/start?issuer=https://evil.example")).status_code == 400


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example/console", "/console/../collections", "/consoles", "/console\\@x"]
)
async def test_a_login_returns_to_pages_of_the_console_only(west: Api, open_browser: OpenBrowser, target: str) -> None:
    browser = await open_browser(west.url)
    page = await browser.get(f"/console/login?{urlencode({'next': target})}")
    [start] = re.findall(r'href="(/console/login/start[^"]*)"', page.text)
    away = await browser.get(start.replace("&amp;", "&"))
    back = await browser.http.post(away.headers["location"], data={"subject": "ada"})
    answer = await browser.get(back.headers["location"])
    assert answer.headers["location"] == "/console"


async def test_a_login_returns_to_the_page_that_was_asked_for(west: Api, open_browser: OpenBrowser) -> None:
    browser = await open_browser(west.url)
    away = await browser.get((await browser.get(f"{PAGE}?late=true")).headers["location"])
    [start] = re.findall(r'href="(/console/login/start[^"]*)"', away.text)
    provider = await browser.get(start.replace("&amp;", "&"))
    back = await browser.http.post(provider.headers["location"], data={"subject": "ada"})
    assert (await browser.get(back.headers["location"])).headers["location"] == f"{PAGE}?late=true"


async def test_a_session_ends_when_nobody_uses_it_and_in_any_case(ada: Visitor, west: Api) -> None:
    conn = await asyncpg.connect(west.settings.dsn)
    assert (await ada.get(PAGE)).status_code == 200
    await conn.execute("UPDATE fedstac.console_session SET used_at = used_at - interval '61 minutes'")
    assert (await ada.get(PAGE)).status_code == 303
    await conn.execute("UPDATE fedstac.console_session SET used_at = now() - interval '59 minutes'")
    assert (await ada.get(PAGE, **{"HX-Request": "true"})).status_code == 200
    assert await conn.fetchval("SELECT used_at < now() - interval '50 minutes' FROM fedstac.console_session")
    assert (await ada.get(PAGE)).status_code == 200
    assert await conn.fetchval("SELECT used_at > now() - interval '50 minutes' FROM fedstac.console_session")
    await conn.execute("UPDATE fedstac.console_session SET ends_at = now()")
    assert (await ada.get(PAGE)).status_code == 303
    await conn.close()


async def test_who_has_no_right_sees_a_plain_page(west: Api, open_browser: OpenBrowser) -> None:
    browser = await open_browser(west.url)
    await browser.log_in("sam")
    for path in (PAGE, "/console/rules"):
        page = await browser.get(path)
        assert page.status_code == 403
        assert page.headers["content-type"].startswith("text/html")
        assert "Sam Stranger" in page.text
        poll = await browser.get(path, **{"HX-Request": "true"})
        assert (poll.status_code, poll.headers["hx-refresh"], poll.content) == (403, "true", b"")


async def test_a_form_without_its_proof_or_from_elsewhere_is_refused(ada: Visitor) -> None:
    proof = await ada.csrf(PAGE)
    for fields, headers in (
        ({"field": "x"}, {}),
        ({"csrf": "A" * 43}, {}),
        ({"csrf": proof}, {"Origin": "https://evil.example"}),
        ({"csrf": proof}, {"Origin": "null"}),
        ({"csrf": proof}, {"Sec-Fetch-Site": "cross-site"}),
    ):
        answer = await ada.post("/console/logout", fields, **headers)
        assert answer.status_code == 403, (fields, headers)
    assert (await ada.http.post("/console/logout", json={"csrf": proof})).status_code == 400
    assert (await ada.get(PAGE)).status_code == 200  # still logged in


async def test_pages_may_load_nothing_from_elsewhere(ada: Visitor) -> None:
    for path in (PAGE, "/console/rules", "/console/login", "/console/nothing"):
        page = await ada.get(path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "same-origin"
        assert not re.search(r"<script(?![^>]*src=)|<style|\son[a-z]+=|\sstyle=", page.text)
        for reference in re.findall(r'(?:src|href)="([^"#]+)"', page.text):
            assert urlsplit(reference).netloc == ""


async def test_files_of_the_pages_are_kept_by_browsers(ada: Visitor) -> None:
    page = await ada.get(PAGE)
    names = re.findall(r'"(/console/assets/[^"]+)"', page.text)
    assert {name.rpartition(".")[2] for name in names} == {"css", "js", "svg"}
    for name in names:
        file = await ada.get(name)
        assert file.status_code == 200
        assert "immutable" in file.headers["cache-control"]
        assert (await ada.get(name, **{"If-None-Match": file.headers["etag"]})).status_code == 304
    assert (await ada.get("/console/assets/console.css")).status_code == 404


async def test_without_a_provider_a_token_is_pasted_once(api: Api, open_browser: OpenBrowser) -> None:
    browser = await open_browser(api.url)
    page = await browser.get("/console/login")
    wrong = await browser.post("/console/login", {"csrf": csrf_of(page), "token": "<b>no</b>"})
    assert wrong.status_code == 401
    assert "<b>no" not in wrong.text
    assert (await browser.post("/console/login", {"token": api.tokens["admin"]})).status_code == 403
    opened = await browser.post("/console/login", {"csrf": csrf_of(wrong), "token": api.tokens["admin"]})
    assert opened.status_code == 303
    assert (await browser.get(PAGE)).status_code == 200


def test_behind_https_the_cookie_is_for_this_host_alone() -> None:
    place = ConsolePlace("https://data.example/stac", "west")
    cookie = place.cookie("session", "x", seconds=60)
    assert cookie == "__Host-fedstac-session-west=x; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"
    assert place.root == "/stac/console"
    assert ConsolePlace("https://Data.Example:443/", "west").origin == "https://data.example"
    assert ConsolePlace("http://[::1]:8080", "west").origin == "http://[::1]:8080"


async def test_behind_a_proxy_with_a_path_everything_is_under_that_path(
    start_api: StartApi, dsn: str, open_browser: OpenBrowser
) -> None:
    node = await start_api(dsn=dsn, public_url="https://data.example/stac")
    browser = await open_browser(node.url)
    away = await browser.get("/console/deletions?late=true")
    assert away.headers["location"] == "/stac/console/login?next=%2Fstac%2Fconsole%2Fdeletions%3Flate%3Dtrue"
    page = await browser.get(away.headers["location"])
    assert set(re.findall(r'(?:href|action)="(/[^/"]*/[^/"]*)', page.text)) == {"/stac/console"}
    attempt = page.headers["set-cookie"].partition(";")[0]
    origin = {"Origin": "https://data.example", "Cookie": attempt}
    fields = {"csrf": csrf_of(page), "token": node.tokens["admin"]}
    opened = await browser.post("/stac/console/login", fields, **origin)
    assert opened.headers["location"] == "/stac/console/deletions?late=true"
    session = next(each for each in opened.headers.get_list("set-cookie") if "session" in each)
    assert re.fullmatch(
        r"__Host-fedstac-session-west=[\w-]{43}; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax; Secure", session
    )
    listed = await browser.get("/stac/console/deletions", Cookie=session.partition(";")[0])
    assert 'hx-get="/stac/console/deletions"' in listed.text


async def test_a_node_may_have_no_console(start_api: StartApi, dsn: str) -> None:
    node = await start_api(dsn=dsn, console=False)
    assert (await node.anyone.get("/console")).status_code == 404
