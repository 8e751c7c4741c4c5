"""`fedstac login`, `logout` and `whoami`, each in a process of its own, against a provider and a node that run."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from fedstac.demo import sample
from tests.support.commands import Fedstac, Result, StartCommand, lines
from tests.support.identity import AT_NODES, CREATE, Provider, StartNode
from tests.support.nodes import Api, StartApi
from tests.support.waiting import PATIENCE, until

As = Callable[..., Awaitable[Result]]
KEYRING = """
import json, os, pathlib
path = pathlib.Path(os.environ["KEYRING_FILE"])
def _all():
    return json.loads(path.read_text()) if path.exists() else {}
def get_password(service, name):
    return _all().get(service + " " + name)
def set_password(service, name, text):
    path.write_text(json.dumps({**_all(), service + " " + name: text}))
def delete_password(service, name):
    path.write_text(json.dumps({key: text for key, text in _all().items() if key != service + " " + name}))
"""
NO_KEYRING = """
def get_password(*_): raise RuntimeError("no backend")
set_password = delete_password = get_password
"""


@pytest.fixture
async def api(start_node: StartNode) -> Api:
    return await start_node()


@pytest.fixture
def alice(api: Api, fedstac: Fedstac, tmp_path: Path) -> As:
    """Runs commands as a user with a home of her own."""

    async def run(*arguments: str, **variables: str) -> Result:
        return await fedstac(*arguments, **at_home(api, tmp_path), **variables)

    return run


def at_home(api: Api, folder: Path) -> dict[str, str]:
    home = {name: str(folder / "home") for name in ("HOME", "XDG_CONFIG_HOME")}
    return {**home, "FEDSTAC_URL": api.url, "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring"}


def kept(folder: Path) -> Path:
    [path] = (folder / "home" / "fedstac").glob("*.json")
    return path


def change(folder: Path, **members: Any) -> None:
    path = kept(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


def ncar() -> list[dict[str, Any]]:
    return [item for item in sample.items(200) if item["properties"]["cmip6:institution_id"] == "NCAR"][:2]


async def test_log_in_publish_and_log_out(
    alice: As, api: Api, provider: Provider, fedstac: Fedstac, tmp_path: Path
) -> None:
    done = await alice("login", "--no-browser")
    assert done.code == 0, done.stderr
    assert f"logged in at {api.url} as Alice Example" in done.stdout
    assert re.search(r"confirm the code [B-Z]{4}-[B-Z]{4}\n", done.stderr)
    assert "ey" not in done.stdout
    path = kept(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    tokens = json.loads(path.read_text())

    shown = await alice("whoami")
    assert (shown.code, shown.stderr) == (0, "")
    assert re.search(r"^Alice Example\n  in the logs  person:[0-9a-f-]{36}\n  issuer", shown.stdout)
    assert "CREATE project CMIP6 for NCAR" in shown.stdout
    assert "publish (builtin: ESGF CREATE)" in shown.stdout
    as_json = json.loads((await alice("whoami", "-o", "json")).stdout)
    assert (as_json["subject"], as_json["email"]) == ("alice", "alice@example.org")

    published = await fedstac("publish", "-", "-c", "CMIP6", stdin=lines(ncar()), **at_home(api, tmp_path))
    assert (published.code, published.stdout) == (0, "published 2 of 2 items in 1 request\n")

    out = await alice("logout")
    assert (out.code, out.stdout, out.stderr) == (0, f"logged out of {api.url}\n", "")
    assert provider.state["revoked"] == [tokens["refresh_token"], tokens["access_token"]]
    assert not list(path.parent.glob("*.json"))
    again = await alice("logout")
    assert (again.code, again.stderr) == (0, f"there was no login at {api.url}\n")
    nobody = await alice("whoami")
    assert nobody.code == 4
    assert "fedstac login" in nobody.stderr


async def test_login_waits_for_the_person(
    api: Api, provider: Provider, tmp_path: Path, start_command: StartCommand
) -> None:
    provider.set(approves=None)
    process = await start_command("login", "-o", "json", folder=tmp_path, **at_home(api, tmp_path))
    try:

        async def asked() -> bool:
            return provider.asked("urn:ietf:params:oauth:grant-type:device_code") > 0

        await until(asked)
        provider.set(approves=True)
        stdout, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["kept"] == str(kept(tmp_path))


async def test_who_refuses_is_not_logged_in(alice: As, provider: Provider, tmp_path: Path) -> None:
    provider.set(approves=False)
    done = await alice("login")
    assert done.code == 4
    assert "refused" in done.stderr
    assert not list((tmp_path / "home").rglob("*.json"))


async def test_a_login_that_the_server_does_not_take_is_not_kept(alice: As, provider: Provider, tmp_path: Path) -> None:
    provider.set(claims={"aud": "https://other.example", "sub": "alice"})
    done = await alice("login")
    assert done.code == 4
    assert "for another service" in done.stderr
    assert not list((tmp_path / "home").rglob("*.json"))


async def test_a_browser_logs_in_where_there_are_no_device_codes(
    api: Api, provider: Provider, tmp_path: Path, start_command: StartCommand
) -> None:
    provider.set(metadata={"device_authorization_endpoint": None})
    process = await start_command("login", "--no-browser", folder=tmp_path, **at_home(api, tmp_path))
    try:
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stderr.readline(), PATIENCE)).decode()
        address = line.removeprefix("open ").strip()
        assert "code_challenge_method=S256" in address
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as http:
            back = (await http.get(address)).headers["location"]
            strange = await http.get(back.replace("state=", "state=x"))
            elsewhere = await http.get(f"http://{urlsplit(back).netloc}/favicon.ico")
            assert (strange.status_code, elsewhere.status_code) == (404, 404)
            assert (await http.get(back)).status_code == 200
        stdout, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, stderr
    assert b"as Alice Example" in stdout


async def test_a_token_about_to_expire_is_renewed_once_by_all(alice: As, provider: Provider, tmp_path: Path) -> None:
    provider.set(lifetime=5)
    assert (await alice("login")).code == 0
    before = json.loads(kept(tmp_path).read_text())
    provider.set(lifetime=3600)
    done = await asyncio.gather(*(alice("whoami", "-o", "json") for _ in range(4)))
    assert [each.code for each in done] == [0] * 4, done
    after = json.loads(kept(tmp_path).read_text())
    assert provider.asked("refresh_token") == 1
    assert after["refresh_token"] != before["refresh_token"]
    change(tmp_path, expires=time.time())
    assert (await alice("whoami")).code == 0, "the refresh token that is kept is the one that works"
    assert provider.asked("refresh_token") == 2


async def test_a_login_that_has_ended_says_what_to_do(alice: As, provider: Provider, tmp_path: Path) -> None:
    assert (await alice("login")).code == 0
    provider.set(refresh_tokens={})
    change(tmp_path, expires=time.time() + 30)
    assert (await alice("whoami")).code == 0, "what still holds is used"
    change(tmp_path, expires=time.time() - 1)
    ended = await alice("whoami")
    assert ended.code == 4
    assert "fedstac login --url" in ended.stderr


async def test_a_provider_that_is_away_ends_with_5(alice: As, api: Api, provider: Provider, tmp_path: Path) -> None:
    assert (await alice("login")).code == 0
    change(tmp_path, expires=time.time() - 1)
    provider.stop()
    for command in ("whoami", "login"):
        done = await alice(command)
        assert done.code == 5, done.stderr
        assert provider.url in done.stderr
    out = await alice("logout")
    assert out.code == 0
    assert "did not take the tokens back" in out.stderr


async def test_a_token_that_is_given_wins(alice: As, api: Api) -> None:
    assert (await alice("login")).code == 0
    by_variable = await alice("whoami", "-o", "json", FEDSTAC_TOKEN=api.tokens["admin"])
    by_option = await alice("whoami", "-o", "json", "--token", api.tokens["node:east"])
    assert json.loads(by_variable.stdout)["roles"] == ["admin"]
    assert json.loads(by_option.stdout)["roles"] == ["node:east"]


async def test_a_login_that_a_token_hides_says_so(alice: As, api: Api) -> None:
    done = await alice("login", FEDSTAC_TOKEN=api.tokens["admin"])
    assert done.code == 0
    assert "FEDSTAC_TOKEN is set, and comes before this login" in done.stderr


async def test_a_file_that_is_damaged_is_no_login(alice: As, tmp_path: Path) -> None:
    assert (await alice("login")).code == 0
    kept(tmp_path).write_text("{")
    assert (await alice("whoami")).code == 4


async def test_an_issuer_that_the_server_does_not_take(alice: As, provider: Provider) -> None:
    done = await alice("login", "--issuer", "https://other.example")
    assert done.code == 2
    assert provider.url in done.stderr
    assert (await alice("login", "--issuer", provider.url)).code == 0


async def test_a_server_without_logins_says_so(start_api: StartApi, dsn: str, fedstac: Fedstac) -> None:
    api = await start_api(dsn=dsn)
    done = await fedstac("login", FEDSTAC_URL=api.url)
    assert done.code == 2
    assert "FEDSTAC_TOKEN" in done.stderr


async def test_a_keyring_that_works_is_used(alice: As, tmp_path: Path) -> None:
    (tmp_path / "keyring.py").write_text(KEYRING)
    with_keyring = {"PYTHONPATH": str(tmp_path), "KEYRING_FILE": str(tmp_path / "ring")}
    done = await alice("login", **with_keyring)
    assert done.code == 0, done.stderr
    assert "the keyring" in done.stderr
    assert not list((tmp_path / "home").rglob("*.json"))
    assert (await alice("whoami", **with_keyring)).code == 0
    assert (await alice("logout", **with_keyring)).code == 0
    assert json.loads((tmp_path / "ring").read_text()) == {}


async def test_a_keyring_that_does_not_work_is_no_hindrance(alice: As, tmp_path: Path) -> None:
    (tmp_path / "keyring.py").write_text(NO_KEYRING)
    for command in ("login", "whoami", "logout"):
        done = await alice(command, PYTHONPATH=str(tmp_path))
        assert done.code == 0, done.stderr


async def test_names_from_the_provider_do_not_command_the_terminal(
    alice: As, provider: Provider, tmp_path: Path
) -> None:
    claims = provider.state["claims"] | {
        "eduperson_entitlement": [CREATE, AT_NODES],
        "groups": ["\u202egroup"],
        "name": "A\u202eB",
    }
    provider.set(claims=claims)
    done = await alice("login")
    assert done.code == 0, done.stderr
    shown = await alice("whoami")
    assert "\u202e" not in done.stdout + shown.stdout
