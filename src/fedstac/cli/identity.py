"""`fedstac login`, `logout` and `whoami`: who a user is at a server."""

from __future__ import annotations

import sys
import webbrowser
from typing import Annotated, Any

import httpx
import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, Token, Url, address_of, client_of, examples, form_of, logins, say_retry, token_of
from fedstac.cli.terminal import Output, complain, for_terminal, out, say
from fedstac.client import Client, credentials
from fedstac.client import login as logging_in
from fedstac.client.login import Prompt
from fedstac.client.transport import LoginFailed, Transport, open_http

commands = typer.Typer()


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac login --url https://west.example",
        "fedstac login --no-browser            # on a machine without one: open the address elsewhere",
        "fedstac login --issuer https://aai.egi.eu/auth/realms/egi",
        codes=True,
    ),
)
def login(
    ctx: typer.Context,
    issuer: Annotated[str, typer.Option(help="Which identity provider, if the server takes several.")] = "",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    output: Form = None,
    url: Url = "",
) -> None:
    """Log in at the server's identity provider. Later commands use that login and renew it.

    The tokens are kept in the keyring of your desktop, or in a file that only you can read. A token from --token or
    FEDSTAC_TOKEN comes before them.
    """
    form, server = form_of(ctx, output), credentials.address(address_of(ctx, url))
    transport = Transport(server, None, timeout=30, retries=1, on_retry=say_retry)
    try:
        offer = logging_in.choose(logging_in.offers(transport), issuer, server=server)
    finally:
        transport.close()
    with open_http(httpx.Client, timeout=credentials.ANSWER_SECONDS) as http:
        login = logging_in.log_in(server, offer, lambda prompt: _show(prompt, browser=browser), http)
    with Client(server, login.access_token, on_retry=say_retry) as client:
        me = client.whoami()
    store = logins()
    with store.lock(server):
        place = store.write(login)
    if form is Output.TABLE:
        out(f"logged in at {server} as {for_terminal(_name(me))}")
        say(f"the login is kept in {place}", "dim")
        if environment.load().token:
            complain("FEDSTAC_TOKEN is set, and comes before this login: unset it")
    else:
        terminal.dump({"server": server, "kept": place, **me})


def _show(prompt: Prompt, *, browser: bool) -> None:
    """Print the address to open and the code, and open it in a browser."""
    say(f"open {for_terminal(prompt.url)}")
    if prompt.code:
        say(f"and confirm the code {for_terminal(prompt.code)}" + (
            "" if prompt.url != prompt.plain_url else ", which it asks for"), "bold")  # fmt: skip
    if browser and sys.stderr.isatty():
        webbrowser.open(prompt.url)


@commands.command(rich_help_panel="Client", epilog=examples("fedstac logout --url https://west.example", codes=True))
def logout(ctx: typer.Context, url: Url = "") -> None:
    """Forget the login at a server. Its tokens are revoked too, if the identity provider can do that."""
    server, store = credentials.address(address_of(ctx, url)), logins()
    with store.lock(server):
        login = store.read(server)
        store.forget(server)
    if login is None:
        say(f"there was no login at {server}")
        return
    with open_http(httpx.Client, timeout=credentials.ANSWER_SECONDS) as http:
        revoked = logging_in.revoke(login, http)
    out(f"logged out of {server}")
    if not revoked:
        complain(f"{login.issuer} did not take the tokens back; they end by themselves, or on its own pages")


@commands.command(rich_help_panel="Client", epilog=examples("fedstac whoami", "fedstac whoami -o json", codes=True))
def whoami(ctx: typer.Context, output: Form = None, url: Url = "", token: Token = "") -> None:
    """Show who you are for the server: your name in its logs, your identity, groups, entitlements, roles and rights."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as server:
        if token_of(ctx, token, server.url) is None:
            raise LoginFailed(f"you are not logged in at {server.url}: fedstac login, or set FEDSTAC_TOKEN")
        me = server.whoami()
    if form is not Output.TABLE:
        terminal.dump(me)
        return
    out(for_terminal(_name(me)), "bold")
    for label, value in _rows(me):
        for n, text in enumerate(value):
            out(f"  {'' if n else label:<13}{for_terminal(text)}")


def _name(me: dict[str, Any]) -> str:
    return str(me.get("full_name") or me.get("subject") or me.get("name"))


def _rows(me: dict[str, Any]) -> list[tuple[str, list[str]]]:
    entitlements = [
        f"{each['role']} {each['kind']} {each['id']}" + (f" for {each['institution']}" if each["institution"] else "")
        for each in me.get("entitlements", ())
    ]
    rights = [f"{', '.join(each['actions'])} ({each['rule']})" for each in me.get("rights", ())]
    return [
        ("in the logs", [str(me.get("name"))]),
        *((name, [str(me[name])]) for name in ("issuer", "subject", "email") if me.get(name)),
        ("groups", [str(each) for each in me.get("groups", ())]),
        ("entitlements", entitlements),
        ("own groups", [str(each) for each in me.get("own_groups", ())]),
        ("expires", [str(me["expires"])] if me.get("expires") else ["never, until it is revoked"]),
        ("roles", [str(each) for each in me.get("roles", ())]),
        ("rights", rights or ["none: nothing can be written"]),
    ]
