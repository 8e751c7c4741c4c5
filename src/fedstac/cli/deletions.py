"""`fedstac deletion …`: the deletion manager of a node, over its API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import orjson
import typer

from fedstac.cli import terminal
from fedstac.cli.options import Form, Token, Url, examples, form_of, server_of
from fedstac.cli.terminal import Output, for_terminal, number, out, say
from fedstac.client.changes import LONGEST_TEXT
from fedstac.client.transport import JSON_BODY, NotFound, Transport, json_of, no_node
from fedstac.domain import plain_yaml
from fedstac.domain.deletion import DeletionState
from fedstac.domain.plain_yaml import YamlNode

PAGE = 200
MOST_BYTES = 1 << 20  # of a file with rules
FIRST_LOOK, LONGEST_LOOK = 0.2, 5.0  # seconds between looks at a request
commands = typer.Typer(no_args_is_help=True, help="What waits to be deleted, and for whom: waive, remind, delete.")
Id = Annotated[str, typer.Argument(help="The id of a deletion, or of a dataset that is marked.")]
COLUMNS = ("deletion" + " " * 28, "state   ", "marked    ", "done ", "dataset")


class StandChoice(StrEnum):
    """How open deletions stand."""

    WAITING = "waiting"
    READY = "ready"
    LATE = "late"
    FAILED = "failed"


class OrderChoice(StrEnum):
    """Orders of the list."""

    MARKED = "marked_at"
    GRACE = "grace_until"
    DATASET = "dataset"


def _post(server: Transport, path: str, body: object, **parameters: str) -> Any:
    return server.json("POST", path, content=orjson.dumps(body), headers=JSON_BODY, params=parameters)


@commands.command(
    "list",
    epilog=examples(
        "fedstac deletion list",
        "fedstac deletion list --late --project CMIP6",
        "fedstac deletion list --state deleted -n 0 -o ndjson | jq -r .dataset",
    ),
)
def list_all(
    ctx: typer.Context,
    project: Annotated[str, typer.Option(help="Those of this project only.")] = "",
    state: Annotated[DeletionState, typer.Option(help="In which state.")] = DeletionState.OPEN,
    stand: Annotated[StandChoice | None, typer.Option(help="How open ones stand.")] = None,
    late: Annotated[bool, typer.Option("--late", help="As --stand late: somebody is late.")] = False,
    ready: Annotated[bool, typer.Option("--ready", help="As --stand ready: it can be deleted.")] = False,
    dependency: Annotated[str, typer.Option(help="Those that have this dependency only.")] = "",
    query: Annotated[str, typer.Option("-q", help="A part of the id, of the reason, or of who marked it.")] = "",
    order: Annotated[OrderChoice, typer.Option("--sort", help="By what they are sorted.")] = OrderChoice.MARKED,
    last: Annotated[int, typer.Option("-n", "--last", min=0, help="How many; 0: all.")] = 50,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """List the datasets that are marked for deletion, the newest mark first, and how many dependencies are done."""
    if late + ready + (stand is not None) > 1:
        raise typer.BadParameter("say one of --stand, --late and --ready")
    standing = StandChoice.LATE if late else StandChoice.READY if ready else stand
    parameters = {
        "project": project, "state": state.value, "standing": standing.value if standing else "",
        "dependency": dependency, "q": query, "sortby": order.value if order is OrderChoice.DATASET else f"-{order}",
    }  # fmt: skip
    with (
        server_of(ctx, url, token) as server,
        terminal.Listing(form_of(ctx, output), COLUMNS) as listing,
    ):
        for entry in _entries(server, {name: value for name, value in parameters.items() if value}, last):
            listing.row(entry, _cells(entry))


def _entries(server: Transport, parameters: dict[str, str], most: int) -> Iterator[dict[str, Any]]:
    """Yield deletions, page by page; `most` of them, 0: all."""
    after: dict[str, str] = {}
    count = 0
    while True:
        limit = min(PAGE, most - count) if most else PAGE
        page = server.json("GET", "/deletions", params={**parameters, **after, "limit": str(limit)})
        yield from page["deletions"]
        count += len(page["deletions"])
        if not page["deletions"] or not page["links"] or (most and count >= most):
            return
        after = {"after": page["deletions"][-1]["id"]}


def _cells(entry: dict[str, Any]) -> tuple[object, ...]:
    parts = entry["dependencies"]
    is_done = [each["state"] in ("ok", "nothing to do", "waived") for each in parts]
    stand = "ready" if entry["ready"] else "late" if entry["late"] else entry["state"]
    return entry["id"], stand, entry["marked_at"][:10], f"{sum(is_done)}/{len(parts)}", entry["dataset"]


@commands.command(
    epilog=examples(
        "fedstac deletion show 01a2261e-9a44-73cf-862f-e231bc8c5e1f",
        "fedstac deletion show CMIP6.CMIP.….v20201018 -o json | jq .missing",
    )
)
def show(ctx: typer.Context, id: Id, output: Form = None, url: Url = "", token: Token = "") -> None:
    """Show one deletion: who has done their part, what is missing, and what happened."""
    with server_of(ctx, url, token) as server:
        _show(form_of(ctx, output), server.json("GET", _path(server, id)))


def _path(server: Transport, id: str) -> str:
    """Return the path of a deletion; of a dataset, its last one. NotFound where there is none."""
    try:
        return f"/deletions/{UUID(id)}"
    except ValueError:
        pass
    for entry in _entries(server, {"q": id[:LONGEST_TEXT]}, 0):
        if entry["dataset"] == id:
            return f"/deletions/{entry['id']}"
    raise NotFound(404, "not-found", f"no dataset {id!r} is or was marked here; fedstac deletion list lists those")


def _show(form: Output, entry: dict[str, Any]) -> None:
    if form is not Output.TABLE:
        terminal.dump(entry)
        return
    out(for_terminal(entry["dataset"]), "bold")
    for label, value in (
        ("deletion", entry["id"]), ("state", entry["state"]), ("marked", f"{entry['marked_at']} by {entry['actor']}"),
        ("reason", entry["reason"]), ("grace until", entry["grace_until"]),
        ("deleted by", "the schedule" if entry["automatic"] else "hand"),
        ("identifiers", " ".join(entry["identifiers"])), ("ended", entry["ended_at"]),
    ):  # fmt: skip
        if value:
            out(f"  {label:<12}{for_terminal(str(value))}")
    for each in entry["dependencies"]:
        notes = [
            "" if each["required"] else "not required", "owns the identifiers" if each["owns_identifier"] else "",
            f"late since {each['due'][:10]}" if each["late"] else "", each["comment"] or "",
            number(each["reminders"], "reminder") if each["reminders"] else "",
            *(f"waived by {waiver['actor']}: {waiver['reason']}" for waiver in each["waivers"]),
        ]  # fmt: skip
        text = "; ".join(note for note in notes if note)
        out(f"  {for_terminal(each['name']):<20} {each['state']:<14}{for_terminal(text)}".rstrip())
    for finding in entry["missing"]:
        out(f"  missing: {for_terminal(finding['message'])}", "bold")
    for each in entry["history"]:
        detail = " ".join(f"{name}={value}" for name, value in each["detail"].items())
        out(f"  {each['at'][:19]}  {each['action']:<16} {for_terminal(each['actor'])}  {for_terminal(detail)}".rstrip())


@commands.command(epilog=examples("fedstac deletion waive 01a2261e-… east --reason 'the node has been taken down'"))
def waive(
    ctx: typer.Context,
    id: Id,
    name: Annotated[str, typer.Argument(help="The dependency.")],
    reason: Annotated[str, typer.Option(help="Why the deletion does not wait for it.")],
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Let a deletion not wait for a dependency. Two different people do so for one that owns the identifiers."""
    if not reason.strip():
        raise typer.BadParameter("say why, for whoever looks", param_hint="--reason")
    with server_of(ctx, url, token) as server:
        entry = _post(server, f"{_path(server, id)}/waive", {"name": name, "reason": reason})
    _show(form_of(ctx, output), entry)
    state = next(each["state"] for each in entry["dependencies"] if each["name"] == name)
    if state != "waived" and state not in ("ok", "nothing to do"):
        say(f"{for_terminal(name)} owns the identifiers: a second person has to waive it, too", "bold")


@commands.command(
    epilog=examples("fedstac deletion remind 01a2261e-…", "fedstac deletion remind 01a2261e-… east north")
)
def remind(
    ctx: typer.Context,
    id: Id,
    names: Annotated[list[str] | None, typer.Argument(help="Dependencies; without any: all that are not done.")] = None,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Send a reminder to dependencies that have not done their part, beside those that the node sends by itself."""
    with server_of(ctx, url, token) as server:
        entry = _post(server, f"{_path(server, id)}/remind", {"names": names} if names else {})
    _show(form_of(ctx, output), entry)


@commands.command(
    epilog=examples(
        "fedstac deletion run --dry-run", "fedstac deletion run --project CMIP6", "fedstac deletion run --no-wait"
    )
)
def run(
    ctx: typer.Context,
    project: Annotated[str, typer.Option(help="Only what is ready in this project.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is ready.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until all is deleted; exit 1 if not.")] = True,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Delete now all that is ready and that you may delete, whatever the schedule says.

    After Ctrl-C the requests that were made go on: fedstac requests list shows them.
    """
    counts: dict[str, int] = {}
    requests: list[dict[str, Any]] = []
    body = {"project": project} if project else {}
    with server_of(ctx, url, token) as server, terminal.bars(["deleted"]) as bars:
        more = True
        while more:
            answer = _post(server, "/deletions/run", body, **({"dry_run": "true"} if dry_run else {}))
            if not requests:
                counts = {each["project"]: each["count"] for each in answer["ready"]}
            requests += answer["requests"]
            asked_count = sum(each["total"] for each in requests)
            more = answer["more"] and asked_count < sum(counts.values())  # what is refused is ready again
        total = sum(each["total"] for each in requests)
        if wait:
            _wait_for_all(server, requests, lambda count: bars.set("deleted", count, total))
    refusals = sum(each["total"] - each["counts"]["done"] for each in requests) if wait else 0
    if form_of(ctx, output) is not Output.TABLE:
        terminal.dump({"ready": counts, "requests": requests, "dry_run": dry_run})
    elif dry_run or not requests:
        for name, count in counts.items():
            out(f"{for_terminal(name):<20} {number(count, 'dataset')} ready")
        if not counts:
            out("nothing is ready")
    else:
        what = "deleted" if wait else "to be deleted"
        out(f"{number(total - refusals, 'dataset')} {what}, by {number(len(requests), 'request')}")
    if refusals:
        first = next(each["id"] for each in requests if each["counts"]["done"] < each["total"])
        say(f"{number(refusals, 'dataset')} not deleted; see fedstac requests show {first} --items", "bold")
        raise typer.Exit(terminal.REJECTED)


def _wait_for_all(server: Transport, requests: list[dict[str, Any]], show: Callable[[int], None]) -> None:
    """Wait until all requests are final, and put their counts into them."""
    deleted_count = 0
    for n, each in enumerate(requests):
        try:
            each["counts"] = _wait_for(server, each["id"])
        except KeyboardInterrupt:
            rest = number(len(requests) - n, "request")
            say(f"the server goes on with {rest}; to follow the next: fedstac requests show {each['id']}")
            raise
        deleted_count += each["counts"]["done"]
        show(deleted_count)


def _wait_for(server: Transport, request: str) -> dict[str, int]:
    """Wait until a request is final, and return its counts."""
    pause = FIRST_LOOK
    while True:
        counts: dict[str, int] = server.json("GET", f"/requests/{quote(request, safe='')}")["counts"]
        if not counts["queued"]:
            return counts
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_LOOK)


@commands.command(
    epilog=examples(
        "fedstac deletion config",
        "fedstac deletion config CMIP6",
        "fedstac deletion config CMIP6 --set rules.yaml --dry-run",
        "fedstac deletion config CMIP6 --set rules.yaml --apply-to-open",
        "fedstac deletion config CMIP6 -o json | jq .rules > rules.json",
    )
)
def config(
    ctx: typer.Context,
    project: Annotated[str, typer.Argument(help="A project; without one, all are listed.")] = "",
    file: Annotated[
        Path | None,
        typer.Option("--set", help="Store the rules of this YAML or JSON file.", dir_okay=False, exists=True),
    ] = None,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Show this version.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what the file would change.")] = False,
    apply_to_open: Annotated[
        bool, typer.Option("--apply-to-open", help="Deletions that are open get the rules, too.")
    ] = False,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Show or change the rules of a project: who does something when a dataset is deleted, and when it is deleted.

    The file has dependencies (name, required, days, contact, owns_identifier), grace_days, automatic, and schedule
    ("HH:MM" in UTC). A change made by somebody else meanwhile is not overwritten.
    """
    form = form_of(ctx, output)
    if file is None and (dry_run or apply_to_open):
        raise typer.BadParameter("it goes with --set FILE")
    if not project and (file is not None or version is not None):
        raise typer.BadParameter("say of which project", param_hint="PROJECT")
    if file is not None and version is not None:
        raise typer.BadParameter("it shows a version of before; --set makes the next one", param_hint="--version")
    path = f"/deletions/rules/{quote(project, safe='')}"
    with server_of(ctx, url, token) as server:
        if not project:
            _list_rules(form, server.json("GET", "/deletions/rules")["rules"])
        elif file is None:
            _show_rules(form, server.json("GET", path, params={"version": str(version)} if version else {}))
        else:
            content = orjson.dumps(_rules_in(file))
            flags = {"dry_run": dry_run, "apply_to_open": apply_to_open}
            response = server.send(
                "PUT", path, content=content, params={name: "true" for name, is_set in flags.items() if is_set},
                headers={**JSON_BODY, "If-Match": _tag(server, path)},
            )  # fmt: skip
            _show_effect(form, json_of(response))


def _tag(server: Transport, path: str) -> str:
    try:
        headers = server.send("GET", path).headers
    except NotFound:
        return '"0"'
    if "etag" not in headers:
        raise no_node(f"{server.url}{path} answered without an ETag; is there a proxy before it?")
    return headers["etag"]


def _rules_in(file: Path) -> object:
    """Return the rules that a file has. BadParameter where it is neither JSON nor plain YAML."""
    raw = file.read_bytes()
    if raw.lstrip()[:1] == b"{":
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise typer.BadParameter(f"{file} is no JSON: {error}", param_hint="--set") from None
    return _value(plain_yaml.parse(raw, MOST_BYTES))


def _value(node: YamlNode) -> object:
    match node.tag:
        case "map":
            return {str(key.value): _value(value) for key, value in node.value}
        case "seq":
            return [_value(each) for each in node.value]
        case "int" | "float":
            try:
                return float(node.value) if node.tag == "float" else int(node.value)
            except ValueError:
                return node.value
        case "bool":
            return node.value == "true"
        case "null":
            return None
    return node.value


def _list_rules(form: Output, every: list[dict[str, Any]]) -> None:
    with terminal.Listing(
        form, ("project     ", "version", "since     ", "grace", "deleted by  ", "waits for")
    ) as listing:
        for each in every:
            rules = each["rules"]
            cells = (
                each["project"], each["version"], each["at"][:10], f"{rules['grace_days']:g} d", _by(rules),
                " ".join(part["name"] for part in rules["dependencies"]),
            )  # fmt: skip
            listing.row(each, cells)


def _by(rules: dict[str, Any]) -> str:
    if not rules["automatic"]:
        return "hand"
    return f"schedule {rules['schedule']}" if rules["schedule"] else "schedule"


def _show_rules(form: Output, document: dict[str, Any]) -> None:
    if form is not Output.TABLE:
        terminal.dump(document)
        return
    out(f"{for_terminal(document['project'])}, version {document['version']}", "bold")
    out(f"  changed     {document['at'][:19]} by {for_terminal(document['actor'])}")
    out(f"  grace       {document['rules']['grace_days']:g} days")
    out(f"  deleted by  {_by(document['rules'])}")
    for each in document["rules"]["dependencies"]:
        notes = [
            f"{each['days']:g} days", "" if each["required"] else "not required",
            "owns the identifiers" if each["owns_identifier"] else "", each["contact"] or "",
        ]  # fmt: skip
        out(f"  {for_terminal(each['name']):<20} {for_terminal('; '.join(note for note in notes if note))}")


def _show_effect(form: Output, effect: dict[str, Any]) -> None:
    if form is not Output.TABLE:
        terminal.dump(effect)
        return
    for each in effect["changes"]:
        was, will = (orjson.dumps(each[side]).decode() for side in ("was", "will"))
        name = f"{each['what']} {each['name']}".strip()
        out(for_terminal(f"{name}: {was} → {will}"))
    if not effect["changes"]:
        out("the rules say this already")
    deletions = number(effect["open"], "open deletion")
    whose = "get the rules, too" if effect["applies_to_open"] else "keep theirs (--apply-to-open changes that)"
    out(f"{deletions} {whose}" if effect["open"] else "no deletion is open")
    out("nothing is stored" if effect["dry_run"] else f"version {effect['version']}", "bold")
