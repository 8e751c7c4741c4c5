"""Commands of those who run a node: its tokens, and an index node's copy. They need the server's parts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fedstac import settings as environment
from fedstac.cli import bulk, terminal
from fedstac.cli.database import with_database
from fedstac.cli.options import Form, Sources, examples, form_of
from fedstac.cli.terminal import Output, complain, out, say

if TYPE_CHECKING:
    from fedstac.bootstrap import Node
    from fedstac.messaging.origin import Origin
    from fedstac.messaging.sources.addresses import SourceAddress

T = TypeVar("T")
SPAN = re.compile(r"([0-9]{1,6})([dh])")
UNITS = {"d": "days", "h": "hours"}

commands = typer.Typer()
token = typer.Typer(no_args_is_help=True, help="Issue, list and revoke tokens in this node's database.")
commands.add_typer(token, name="token", rich_help_panel="Node")


class Start(StrEnum):
    """What an index node is rebuilt from."""

    SNAPSHOT = "snapshot"
    ZERO = "zero"


@token.command(
    epilog=examples(
        "fedstac token issue ncar --role publisher:NCAR --expires 365d", "fedstac token issue east -r node:east"
    )
)
def issue(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Who holds it; it stands in the audit log.")],
    role: Annotated[
        list[str], typer.Option("--role", "-r", help="admin, monitor, publisher:<institution> or node:<name>.")
    ],
    expires: Annotated[
        str, typer.Option(metavar="WHEN", help="When it ends: 90d, 12h, or a time as 2027-01-31; else when revoked.")
    ] = "",
    unknown_institution: Annotated[
        bool, typer.Option("--unknown-institution", help="Also for an institution that no vocabulary has.")
    ] = False,
    output: Form = None,
) -> None:
    """Issue a token. It is shown this once and never kept."""
    from fedstac.db import nodes

    wrong = [each for each in role if each not in ("admin", "monitor") and not all(each.partition(":"))]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not one of admin, monitor, publisher:<institution>, node:<name>")
    if not nodes.is_name(name):
        raise typer.BadParameter(f"{name!r} is no name; it has 1 to 100 for_terminal characters, and is no pseudonym")
    for each in role if not unknown_institution else ():
        _check_institution(each)
    end = _end(expires)
    issued = with_database(lambda conn: nodes.issue_token(conn, name, role, expires=end))
    until = end.isoformat(timespec="seconds") if end else None
    if form_of(ctx, output) is Output.TABLE:
        out(issued)
        ends = f" until {until}" if until else ""
        say(f"the token of {name} for {', '.join(role)}{ends}; keep it, it is not shown again", "dim")
    else:
        terminal.dump({"name": name, "roles": role, "token": issued, "expires": until})


def _check_institution(role: str) -> None:
    """Raise BadParameter if a role is for an institution that no vocabulary has; a misspelt one gives no rights."""
    from fedstac.domain.wording import nearest

    kind, _, institution = role.partition(":")
    vocabularies = bulk.vocabularies()
    current = [vocabulary for project in vocabularies.projects() if (vocabulary := vocabularies.current(project))]
    institutions = {term for each in current for term in each.properties[each.institution].terms or ()}
    if kind == "publisher" and institution not in institutions:
        near = nearest(institution, sorted(institutions))
        raise typer.BadParameter(
            f"no vocabulary has the institution {institution!r}"
            + (f"; did you mean {near}?" if near else ".")
            + " To issue the token all the same say --unknown-institution.",
            param_hint="--role",
        )


def _end(text: str) -> datetime | None:
    """Return the time that `--expires` names: a span from now on, or a date. BadParameter for no time or a past one."""
    now = datetime.now(UTC)
    if not text:
        return None
    span = SPAN.fullmatch(text)
    try:
        end = now + timedelta(**{UNITS[span[2]]: int(span[1])}) if span else datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no time; write 90d, 12h or 2027-01-31", param_hint="--expires") from None
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    if end <= now:
        raise typer.BadParameter(f"{text!r} is past", param_hint="--expires")
    return end


@token.command("list", epilog=examples("fedstac token list", "fedstac token list -o ndjson | jq .expires"))
def list_tokens(ctx: typer.Context, output: Form = None) -> None:
    """List the tokens that are not revoked: who holds them, what for, since when, until when."""
    from fedstac.db import nodes

    _show_tokens(form_of(ctx, output), with_database(nodes.tokens))


@token.command(epilog=examples("fedstac token revoke ncar", "fedstac token revoke 5f2c8a90b1d4"))
def revoke(
    ctx: typer.Context,
    which: Annotated[str, typer.Argument(help="A name: all its tokens; an id from the list: that one.")],
    output: Form = None,
) -> None:
    """Withdraw tokens; within ten seconds they are refused everywhere."""
    from fedstac.db import nodes

    revoked_tokens = with_database(lambda conn: nodes.revoke_tokens(conn, which))
    if not revoked_tokens:
        complain(f"there is no token of the name or id {which}; see fedstac token list")
        raise typer.Exit(terminal.NOT_FOUND)
    _show_tokens(form_of(ctx, output), revoked_tokens)


def _show_tokens(form: Output, tokens: Any) -> None:
    now = datetime.now(UTC)
    with terminal.Listing(form, ("id          ", "name      ", "since     ", "expires   ", "roles")) as listing:
        for each in tokens:
            since = each.created.isoformat(timespec="seconds")
            expires = each.expires.isoformat(timespec="seconds") if each.expires else None
            row = {"id": each.id, "name": each.name, "roles": each.roles, "created": since, "expires": expires}
            shown_end = "ended" if each.expires and each.expires <= now else (expires or "never")[:10]
            listing.row(row, (each.id, each.name, since[:10], shown_end, " ".join(each.roles)))


# --- an index node's copy ---


def _at_sources(
    role: str, overrides: list[str] | None, work: Callable[[Node, Origin, SourceAddress], Awaitable[T]]
) -> list[T]:
    """Run something with this index node and each of its sources, one after the other."""
    import logging

    import structlog

    from fedstac import bootstrap
    from fedstac.messaging.origin import origin_of
    from fedstac.workers import processes, roles

    processes.start(role)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    settings = environment.load()
    sources = roles.addresses(settings, overrides or ())

    async def connected() -> list[T]:
        results = []
        async with bootstrap.node(settings) as node:
            for source in sources:
                async with origin_of(source) as origin:
                    results.append(await work(node, origin, source))
        return results

    return asyncio.run(connected())


@dataclass(frozen=True, slots=True)
class _ComparisonOfSource:
    """The result of a comparison with one source."""

    origin: str
    cursor: str
    compared: int
    differences: list[dict[str, str | bool]]

    @property
    def remaining(self) -> int:
        """How many differences are there still."""
        return sum(not row.get("mended", False) for row in self.differences)


@commands.command(
    rich_help_panel="Node",
    epilog=examples(
        "fedstac verify",
        "fedstac verify --source https://west.example -o ndjson",
        "fedstac verify --repair",
        codes=True,
    ),
)
def verify(
    ctx: typer.Context,
    source: Sources = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what differs by what the source says of it; no snapshot is taken.")
    ] = False,
    output: Form = None,
) -> None:
    """Compare an index node's datasets with its sources', by digest; list each that differs.

    The index node may run meanwhile. With --repair what is missing or different is fetched from the source, and what
    the source does not have is removed here; the exit code is 0 if nothing is left.
    """
    from fedstac.messaging.sources import SourceAway, SourceRefused
    from fedstac.workers import verifying

    failed: list[Exception] = []

    async def compare(node: Node, origin: Origin, _: SourceAddress) -> _ComparisonOfSource | None:
        try:
            name, _head = await origin.head()
            comparison = await verifying.verify(node, origin)
            repairs = await verifying.repair(node, origin, comparison.differences) if repair else []
        except (SourceAway, SourceRefused) as error:  # the others are compared all the same
            failed.append(error)
            return None
        rows: list[dict[str, str | bool]] = [
            {"origin": name, "collection": each.collection, "id": each.id, "kind": each.kind}
            for each in comparison.differences
        ]
        reasons = {(each.difference.collection, each.difference.id): each.reason for each in repairs}
        for row in rows if repair else []:
            reason = reasons[str(row["collection"]), str(row["id"])]
            row |= {"mended": reason is None} | ({"reason": reason} if reason else {})
        return _ComparisonOfSource(name, str(comparison.cursor), comparison.compared, rows)

    comparisons = [each for each in _at_sources("verify", source, compare) if each is not None]
    _show_compared(form_of(ctx, output), comparisons, repair=repair)
    for error in failed[:-1]:
        complain(str(error))
    if failed:
        raise failed[-1]
    if any(each.remaining for each in comparisons):
        raise typer.Exit(terminal.REJECTED)


def _show_compared(form: Output, comparisons: list[_ComparisonOfSource], *, repair: bool) -> None:
    differences = [row for each in comparisons for row in each.differences]
    if form is Output.JSON:
        origins = [{"origin": each.origin, "cursor": each.cursor, "compared": each.compared} for each in comparisons]
        terminal.dump({"origins": origins, "differences": differences})
        return
    with terminal.Listing(form, ("origin", "kind", "collection", "id", *(["result"] if repair else []))) as listing:
        for row in differences:
            result = ["mended" if row["mended"] else row["reason"]] if repair else []
            listing.row(row, (row["origin"], row["kind"], row["collection"], row["id"], *result))
    for each in comparisons:
        numbers = f"{each.compared} datasets at the source, {len(each.differences)} differences"
        mended = f", {len(each.differences) - each.remaining} mended" if repair else ""
        say(f"{each.origin}: {numbers}{mended}; the cursor here is {each.cursor}")


@commands.command(rich_help_panel="Node", epilog=examples("fedstac rebuild --from snapshot", codes=True))
def rebuild(
    start: Annotated[Start, typer.Option("--from", help="Current state, or every event since the beginning.")],
    source: Sources = None,
) -> None:
    """Empty an index node of its sources' datasets and fill it anew; searches find none of them until it is done.

    With --source what came from others stays. Stop the index node first. What is interrupted goes on when it starts
    again.
    """
    from fedstac.messaging.sources.http import HttpSource
    from fedstac.workers import index_node as index

    async def work(node: Node, origin: Origin, source: SourceAddress) -> None:
        _, entries = await origin.digests()
        name, head = await origin.head()
        total = sum(entry["n"] for entry in entries) if start is Start.SNAPSHOT else head.pos
        count = 0

        def on_page(applied: int) -> None:
            nonlocal count
            count += applied
            bars.set("applied", count, max(total, count))

        async with HttpSource(source) as events:  # it goes back to the beginning, a broker may not
            cursor = await index.rebuild(node, origin, events, from_snapshot=start is Start.SNAPSHOT, on_page=on_page)
        out(f"rebuilt {name}: {count} entries applied, the cursor is {cursor}")

    with terminal.bars(["applied"]) as bars:
        _at_sources("rebuild", source, work)
