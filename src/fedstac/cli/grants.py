"""`fedstac grant …`: who may have the files of controlled datasets, over the API."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import orjson
import typer

from fedstac.cli import terminal
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, for_terminal, number, out, say
from fedstac.client import Client
from fedstac.client.grants import PAGE, GrantImport
from fedstac.domain.model import moment, rfc3339

SHOWN_REFUSALS = 20
WITHDRAWN_AGAIN = "withdrawn again, by the audit log"
commands = typer.Typer(no_args_is_help=True, help="Who may have the files of controlled datasets, until when.")
COLUMNS = ("grant" + " " * 31, "stand  ", "until     ", "subject         ", "for")
PRIVATE_COLUMNS = ("collection  ", "state      ", "updated   ", "dataset")
Dataset = Annotated[str, typer.Option(help="Of this dataset: CMIP6/id.")]
Lineage = Annotated[str, typer.Option(help="Of all versions of a dataset: CMIP6/id without its version.")]
Project = Annotated[str, typer.Option(help="Of all datasets of a project: CMIP6.")]


class GrantChoice(StrEnum):
    """Which grants are listed."""

    OPEN = "open"
    CLOSED = "closed"
    ALL = "all"


def _target(dataset: str, lineage: str, project: str) -> dict[str, str]:
    """Return what the options name. BadParameter where they are more than one."""
    values = {"dataset": dataset, "lineage": lineage, "project": project}
    target = {name: value for name, value in values.items() if value}
    if len(target) > 1:
        raise typer.BadParameter("say one of --dataset, --lineage and --project")
    return target


def _time(text: str, option: str) -> str:
    """Return a day, which begins at midnight UTC, or a time as the API takes it. BadParameter where it is neither."""
    instant = moment(text)
    if instant is None:
        try:
            instant = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            raise typer.BadParameter("write 2027-01-31, or 2027-01-31T12:00:00Z", param_hint=option) from None
    return rfc3339(instant)


@commands.command(
    epilog=examples(
        "fedstac grant give person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2 --dataset CMIP6/CMIP6.CMIP.….v20201018 "
        "--until 2027-01-31",
        "fedstac grant give alice-1 --issuer https://aai.example.org --project CORDEX --until 2027-01-31",
    )
)
def give(
    ctx: typer.Context,
    subject: Annotated[str, typer.Argument(help="A name as in the logs, or with --issuer the subject of a token.")],
    until: Annotated[str, typer.Option(help="A day or a time: it holds before that.")],
    issuer: Annotated[str, typer.Option(help="The issuer of the subject's tokens.")] = "",
    dataset: Dataset = "", lineage: Lineage = "", project: Project = "",
    since: Annotated[str, typer.Option("--from", help="A day or a time; else it holds at once.")] = "",
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Give somebody the files of a dataset, of all its versions, or of a project. Again it changes nothing."""
    target = _target(dataset, lineage, project)
    if not target:
        raise typer.BadParameter("say what for: --dataset, --lineage or --project")
    who = {"iss": issuer, "sub": subject} if issuer else subject
    wish = {"subject": who, **target, "valid_until": _time(until, "--until")}
    if since:
        wish["valid_from"] = _time(since, "--from")
    with client_of(ctx, url, token) as client:
        _show(form_of(ctx, output), client.give_grant(wish))


def _show(form: Output, grant: dict[str, Any]) -> None:
    if form is not Output.TABLE:
        terminal.dump(grant)
        return
    out(f"{grant['id']}  {grant['stand']}", "bold")
    for label in ("subject", "dataset", "lineage", "project", "valid_from", "valid_until", "given_by", "closed_at",
                  "closed_by", "closed_why"):  # fmt: skip
        if grant.get(label) is not None:
            out(f"  {label:<12}{for_terminal(grant[label])}")


@commands.command(
    "list",
    epilog=examples(
        "fedstac grant list",
        "fedstac grant list --project CORDEX --state all -n 0 -o ndjson",
        "fedstac grant list --subject person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2",
    ),
)
def list_all(
    ctx: typer.Context,
    subject: Annotated[str, typer.Option(help="Those of somebody, by the name that the logs have.")] = "",
    dataset: Dataset = "", lineage: Lineage = "", project: Project = "",
    state: Annotated[GrantChoice, typer.Option(help="Open ones, which may have expired, closed ones, or all.")] = (
        GrantChoice.OPEN
    ),
    last: Annotated[int, typer.Option("-n", "--most", min=0, help="How many; 0: all.")] = 50,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """List grants in the order in which they were given: one's own, and those that a right shows."""
    target = _target(dataset, lineage, project)
    parameters = {"state": state.value, **({"subject": subject} if subject else {}), **target}
    with client_of(ctx, url, token) as client, terminal.Listing(form_of(ctx, output), COLUMNS) as listing:
        for grant in islice(_every(client, parameters, limit=min(last or PAGE, PAGE)), last or None):
            place = next(grant[name] for name in ("dataset", "lineage", "project") if name in grant)
            cells = (grant["id"], grant["stand"], grant["valid_until"][:10], grant["subject"], place)
            listing.row(grant, cells)


def _every(client: Client, conditions: dict[str, str], *, limit: int = PAGE) -> Iterator[dict[str, Any]]:
    """Yield grants, or visas, page by page."""
    page = client.grants(conditions, limit=limit)
    while page:
        yield from page
        page = client.grants(conditions, after=page[-1].get("id") or page[-1]["jti"], limit=limit)


@commands.command("private", epilog=examples("fedstac grant private", "fedstac grant private -c CORDEX -n 0 -o ndjson"))
def private_datasets(
    ctx: typer.Context,
    collection: Annotated[str, typer.Option("-c", "--collection", help="Those of this collection.")] = "",
    last: Annotated[int, typer.Option("-n", "--most", min=0, help="How many; 0: all.")] = 50,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """List the private datasets that you have a right to. No search finds them."""
    with client_of(ctx, url, token) as client, terminal.Listing(form_of(ctx, output), PRIVATE_COLUMNS) as listing:
        for each in islice(_every_private(client, collection, limit=min(last or PAGE, PAGE)), last or None):
            listing.row(dict(each), (each["collection"], each["state"], each["updated"][:10], each["id"]))


def _every_private(client: Client, collection: str, *, limit: int) -> Iterator[Mapping[str, Any]]:
    """Yield private datasets, page by page."""
    page = client.private_datasets(collection, limit=limit)
    yield from page.datasets
    while page.token:
        page = client.private_datasets(collection, token=page.token, limit=limit)
        yield from page.datasets


@commands.command(
    epilog=examples(
        "fedstac grant check CMIP6/CMIP6.CMIP.….v20201018 --subject person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2"
    )
)
def check(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(help="The dataset: CMIP6/id.")],
    subject: Annotated[str, typer.Option(help="A name as in the logs, or with --issuer the subject of a token.")],
    issuer: Annotated[str, typer.Option(help="The issuer of the subject's tokens.")] = "",
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Say until when somebody may have the files of a dataset by a grant. The exit code is 1 where they may not."""
    who = {"iss": issuer, "sub": subject} if issuer else {"subject": subject}
    with client_of(ctx, url, token) as client:
        valid_until = client.check_grant(dataset, **who)
    if form_of(ctx, output) is not Output.TABLE:
        terminal.dump({"dataset": dataset, "valid_until": rfc3339(valid_until) if valid_until else None})
    else:
        out(f"until {rfc3339(valid_until)}" if valid_until else "no grant opens it now")
    if valid_until is None:
        raise typer.Exit(terminal.REJECTED)


@commands.command(
    epilog=examples(
        "fedstac grant withdraw 01a2261e-9a44-73cf-862f-e231bc8c5e1f --reason 'the project is over'",
        "fedstac grant withdraw --dataset CMIP6/CMIP6.CMIP.….v20201018",
        "fedstac grant withdraw --subject person:8f14e45f-ceea-467f-9575-1cd5e0d0a1b2 --project CORDEX",
        "fedstac grant withdraw --again audit-2026.ndjson         # after a restore",
    )
)
def withdraw(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(help="The grant; else all that the options name.", show_default=False)] = "",
    subject: Annotated[str, typer.Option(help="Those of somebody, by the name that the logs have.")] = "",
    dataset: Dataset = "", lineage: Lineage = "", project: Project = "",
    again: Annotated[
        Path | None, typer.Option(help="Those that this export of the audit log says were.", allow_dash=True)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit log and the event.")] = "",
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Withdraw a grant, or all open ones of a dataset, a lineage, a project or a subject. Again it changes nothing."""
    parameters = {**({"subject": subject} if subject else {}), **_target(dataset, lineage, project)}
    if [bool(id), bool(parameters), again is not None].count(True) != 1:
        raise typer.BadParameter("name a grant, or say which by --subject, --dataset, --lineage, --project or --again")
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        if id:
            _show(form, client.withdraw_grant(id, reason=reason))
            return
        if again is not None:
            with _opened(again) as lines:
                count = client.withdraw_again(lines, reason=reason or WITHDRAWN_AGAIN)
        else:
            count = client.withdraw_grants(parameters, reason=reason)
    if form is not Output.TABLE:
        terminal.dump({"withdrawn": count})
    else:
        out(f"{number(count, 'grants')} withdrawn")


@commands.command(
    "import",
    epilog=examples(
        "fedstac grant import grants.ndjson",
        """jq -c '{subject: {iss: "https://aai.example.org", sub: .user}, project: "CORDEX", valid_until: .end}' """
        "users.ndjson | fedstac grant import -",
    ),
)
def import_(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="NDJSON: a grant on each line; - is standard input.", allow_dash=True)],
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Give the grants of a file. One that is there already is not given again: send an interrupted import anew."""
    form = form_of(ctx, output)
    with _opened(file) as stream, client_of(ctx, url, token) as client:
        result = client.import_grants((line for line in stream if line.strip()), on_part=_say_how_far)
    if form is not Output.TABLE:
        terminal.dump({"given": result.new_count, "present": result.present_count, "refused": result.refusals})
    else:
        out(f"given {result.new_count}, there before {result.present_count}, refused {len(result.refusals)}")
        for each in result.refusals[:SHOWN_REFUSALS]:
            out(f"  line {each['line']}: {for_terminal(each['detail'])}")
    if result.refusals:
        raise typer.Exit(terminal.REJECTED)


def _say_how_far(so_far: GrantImport) -> None:
    say(f"{so_far.new_count + so_far.present_count + len(so_far.refusals)} lines are done", "dim")


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    if not file.is_file():
        raise typer.BadParameter(f"there is no file {file}", param_hint="FILE")
    with file.open("rb") as stream:
        yield stream


@commands.command(
    epilog=examples(
        "fedstac grant export > grants.ndjson",
        "fedstac grant export --visas --project CORDEX | jq -r .ga4gh_visa_v1.value",
    )
)
def export(
    ctx: typer.Context,
    dataset: Dataset = "", lineage: Lineage = "", project: Project = "",
    visas: Annotated[bool, typer.Option("--visas", help="As claims of GA4GH visas: those that are valid now.")] = False,
    url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Write the open grants that have not expired as NDJSON, as import takes them: one a line."""
    parameters = {**_target(dataset, lineage, project), **({"format": "ga4gh"} if visas else {})}
    with client_of(ctx, url, token) as client:
        for grant in _every(client, parameters):
            if grant.get("stand") == "expired":
                continue
            names = ("subject", "dataset", "lineage", "project", "valid_from", "valid_until")
            value = grant if visas else {name: grant[name] for name in names if name in grant}
            sys.stdout.buffer.write(orjson.dumps(value) + b"\n")
    sys.stdout.flush()
