"""Commands of those who run a node: its tokens, and an index node's copy. They need the server's parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, Source, examples, form_of
from fedstac.cli.terminal import Output, complain, out, say

if TYPE_CHECKING:
    from fedstac.bootstrap import Node
    from fedstac.db.connections import Connection
    from fedstac.messaging.http_feed import HttpFeed

T = TypeVar("T")

commands = typer.Typer()
token = typer.Typer(no_args_is_help=True, help="Issue, list and revoke tokens in this node's database.")
commands.add_typer(token, name="token", rich_help_panel="Node")


class Start(StrEnum):
    """What an index node is rebuilt from."""

    SNAPSHOT = "snapshot"
    ZERO = "zero"


def _with_database(work: Callable[[Connection], Awaitable[T]]) -> T:
    """Runs something on a connection to this node's database."""
    from fedstac.db import connections

    async def connected() -> T:
        conn = await connections.connect(environment.load().dsn, application="fedstac cli")
        try:
            return await work(conn)
        finally:
            await conn.close()

    return asyncio.run(connected())


@token.command(
    epilog=examples("fedstac token issue ncar --role publisher:NCAR", "fedstac token issue east -r node:east")
)
def issue(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Who holds it; it stands in the audit log.")],
    role: Annotated[list[str], typer.Option("--role", "-r", help="admin, publisher:<institution> or node:<name>.")],
    output: Form = None,
) -> None:
    """Issue a token. It is shown this once and never kept."""
    from fedstac.db import nodes

    wrong = [each for each in role if each != "admin" and not all(each.partition(":"))]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is none of admin, publisher:<institution>, node:<name>")
    issued = _with_database(lambda conn: nodes.issue_token(conn, name, role))
    if form_of(ctx, output) is Output.TABLE:
        out(issued)
        say(f"the token of {name} for {', '.join(role)}; keep it, it is not shown again", "dim")
    else:
        terminal.dump({"name": name, "roles": role, "token": issued})


@token.command("list")
def list_tokens(ctx: typer.Context, output: Form = None) -> None:
    """List the valid tokens: who holds them, what for, since when."""
    from fedstac.db import nodes

    _show_tokens(form_of(ctx, output), _with_database(nodes.tokens))


@token.command(epilog=examples("fedstac token revoke ncar", "fedstac token revoke 5f2c8a90b1d4"))
def revoke(
    ctx: typer.Context,
    which: Annotated[str, typer.Argument(help="A name: all its tokens; an id from the list: that one.")],
    output: Form = None,
) -> None:
    """Withdraw tokens; within ten seconds they are refused everywhere."""
    from fedstac.db import nodes

    gone = _with_database(lambda conn: nodes.revoke_tokens(conn, which))
    if not gone:
        complain(f"there is no token of the name or id {which}; see fedstac token list")
        raise typer.Exit(terminal.NOT_FOUND)
    _show_tokens(form_of(ctx, output), gone)


def _show_tokens(form: Output, tokens: Any) -> None:
    with terminal.Listing(form, ("id", "name", "since", "roles")) as listing:
        for each in tokens:
            since = each.created.isoformat(timespec="seconds")
            row = {"id": each.id, "name": each.name, "roles": each.roles, "created": since}
            listing.row(row, (each.id, each.name, since[:10], " ".join(each.roles)))


# --- an index node's copy ---


def _at_source(role: str, source: str, work: Callable[[Node, HttpFeed], Awaitable[T]]) -> T:
    """Runs something with this index node and its source."""
    import logging

    import structlog

    from fedstac import bootstrap, processes
    from fedstac.messaging.http_feed import HttpFeed

    processes.start(role)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    settings = environment.load()
    address = source or settings.source
    if not address:
        raise typer.BadParameter("say which node is followed: --source http://… or FEDSTAC_SOURCE")

    async def connected() -> T:
        async with bootstrap.node(settings) as node, HttpFeed(address, settings.source_token) as origin:
            return await work(node, origin)

    return asyncio.run(connected())


@commands.command(rich_help_panel="Node", epilog=examples("fedstac verify", "fedstac verify -o ndjson", codes=True))
def verify(ctx: typer.Context, source: Source = "", output: Form = None) -> None:
    """Compare an index node's datasets with its source's, by digest; list each that differs."""
    from fedstac.workers import index_node as follower

    form = form_of(ctx, output)
    cursor, compared, found = _at_source("verify", source, follower.verify)
    differences = [{"collection": each.collection, "id": each.id, "kind": each.kind} for each in found]
    if form is Output.JSON:
        terminal.dump({"cursor": str(cursor), "compared": compared, "differences": differences})
    else:
        with terminal.Listing(form, ("kind", "collection", "id")) as listing:
            for row in differences:
                listing.row(row, (row["kind"], row["collection"], row["id"]))
        say(f"{compared} datasets at the source, {len(found)} differences; the cursor here is {cursor}")
    if found:
        raise typer.Exit(terminal.REJECTED)


@commands.command(rich_help_panel="Node", epilog=examples("fedstac rebuild --from snapshot", codes=True))
def rebuild(
    start: Annotated[Start, typer.Option("--from", help="Current state, or every event since the beginning.")],
    source: Source = "",
) -> None:
    """Empty an index node of its source's datasets and fill it anew; searches find nothing until it is done.

    Stop the index node first. What is interrupted goes on when it starts again.
    """
    from fedstac.workers import index_node as follower

    async def work(node: Node, origin: HttpFeed) -> tuple[Any, int]:
        _, entries = await origin.digests()
        _, head = await origin.head()
        total = sum(entry["n"] for entry in entries) if start is Start.SNAPSHOT else head.pos
        done = 0

        def on_page(applied: int) -> None:
            nonlocal done
            done += applied
            bars.set("applied", done, max(total, done))

        return await follower.rebuild(node, origin, from_snapshot=start is Start.SNAPSHOT, on_page=on_page), done

    with terminal.bars(["applied"]) as bars:
        cursor, applied = _at_source("rebuild", source, work)
    out(f"rebuilt: {applied} entries applied, the cursor is {cursor}")
