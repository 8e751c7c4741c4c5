"""`fedstac replica`: list, announce and verify copies of datasets at other nodes."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

import httpx
import typer

from fedstac import __version__
from fedstac import settings as environment
from fedstac.cli import bulk, terminal
from fedstac.cli.bulk import ChangeOptions, Collection, DryRun, Ids, IdsFrom, Job, One, Yes
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.replica_node import deciding, importing, orders, orphans, status, syncing, verifying
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.client.transport import NotFound, open_http
from fedstac.client.values import ChangeResult, Dataset, File
from fedstac.domain.patching import WithoutNode

commands = typer.Typer(
    no_args_is_help=True, help="Copies of datasets: say where they are, and look after a replica node."
)
for family in (deciding, status, syncing, orders, importing, orphans):
    commands.add_typer(family.commands)

Node = Annotated[str, typer.Option("--node", "-n", help="The node that has the copies.")]
SHA256 = "1220"  # multihash: what, how long
SECONDS = 30.0
CALLS = 8  # looks at the same time


@commands.command(
    "add",
    epilog=examples("fedstac replica add CMIP6.… --node east --base-url https://east.example/data",
                    "fedstac replica add CMIP6.… --node east --href psl.nc=https://east.example/psl.nc", codes=True),
)  # fmt: skip
def add_replica(
    ctx: typer.Context,
    node: Node,
    ids: Ids = None,
    base_url: Annotated[
        str, typer.Option(help="All files are below it, by their file:local_path, else by their name.")
    ] = "",
    href: Annotated[list[str] | None, typer.Option(metavar="ASSET=URL", help="Where one asset is. Repeatable.")] = None,
    ids_from: IdsFrom = "", collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Say that a node has copies of datasets' files. Other nodes' entries stay as they are."""
    if bool(base_url) == bool(href):
        raise typer.BadParameter("say where the copies are: --base-url for all files, or --href for single ones")
    addresses = dict(_address_of(text) for text in href or ())

    def entries(dataset: Dataset) -> dict[str, dict[str, str]]:
        hrefs = addresses or {key: _below(base_url, key, asset) for key, asset in _files(dataset).items()}
        return {key: {"href": address} for key, address in hrefs.items()}

    def perform(one: One) -> ChangeResult:
        replica = entries(one.client.get(one.id, collection=one.collection)) if base_url else {
            key: {"href": address} for key, address in addresses.items()
        }  # fmt: skip
        if not replica:
            raise NotFound(404, "no-files", f"{one.id} shows no files; a retracted dataset has none to copy")
        return one.client.put_replica(one.id, node, replica, collection=one.collection, if_match=one.if_match,
                                      dry_run=one.dry_run)  # fmt: skip

    def foreseen(dataset: Dataset) -> Mapping[str, Any]:
        assets = dict(dataset.document["assets"])
        for key, entry in entries(dataset).items():
            asset = assets.get(key, {})
            assets[key] = {**asset, "alternate": {**(asset.get("alternate") or {}), node: entry}}
        return {**dataset.document, "assets": assets}

    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    bulk.run(Job("replica add", perform, foreseen), options)


def _address_of(text: str) -> tuple[str, str]:
    asset, _, address = text.partition("=")
    if not address.startswith(("https://", "http://", "s3://", "gsiftp://")):
        raise typer.BadParameter(f"{text!r} is not of the form ASSET=https://…", param_hint="--href")
    return asset, address


def _files(dataset: Dataset) -> dict[str, Mapping[str, Any]]:
    """Return the assets that are files: those with a checksum or a size."""
    return {
        key: asset
        for key, asset in dataset.document["assets"].items()
        if "file:checksum" in asset or "file:size" in asset
    }


def _below(base: str, key: str, asset: Mapping[str, Any]) -> str:
    path = str(asset.get("file:local_path") or posixpath.basename(unquote(urlsplit(asset["href"]).path)) or key)
    return f"{base.rstrip('/')}/{quote(path.lstrip('/'))}"


@commands.command("remove", epilog=examples("fedstac replica remove CMIP6.… --node east", codes=True))
def remove_replica(
    ctx: typer.Context, node: Node, ids: Ids = None,
    ids_from: IdsFrom = "", collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Say that a node has no copies any more; if it had none, nothing changes."""
    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    bulk.run(
        Job("replica remove",
            lambda one: one.client.remove_replica(one.id, node, collection=one.collection, if_match=one.if_match,
                                                  dry_run=one.dry_run),
            lambda dataset: WithoutNode(node).apply(dataset.document), {"replicated": f"removed from {node}"}),
        options,
    )  # fmt: skip


@commands.command("list", epilog=examples("fedstac replica list CMIP6.…", codes=True))
def list_replicas(
    ctx: typer.Context, id: Annotated[str, typer.Argument(metavar="ID", help="A dataset's id.")],
    collection: Collection = "", output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """List the nodes that have copies of a dataset, and of how many of its files."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as client:
        replicas = client.list_replicas(id, collection=bulk.collection_of(id, collection, client))
    with terminal.Listing(form, ("node                     ", "files  ", "complete")) as listing:
        for each in replicas:
            cells = (each.node, f"{each.files}/{each.of}", "yes" if each.is_complete else "no")
            listing.row(asdict(each), cells)
    if not replicas and form is Output.TABLE:
        say("no other node has copies of it", "dim")


# --- verify ---


@commands.command(
    epilog=examples("fedstac replica verify --sample 1                     # of this replica node, by size",
                    "fedstac replica verify --checksums --repair",
                    "fedstac replica verify CMIP6.…                        # the addresses of a dataset's copies",
                    "fedstac replica verify CMIP6.… --node east --checksums", codes=True)
)  # fmt: skip
def verify(
    ctx: typer.Context,
    ids: Ids = None,
    node: Annotated[str, typer.Option("--node", "-n", help="Only its copies; else all, and the originals.")] = "",
    checksums: Annotated[bool, typer.Option("--checksums", help="Read every byte and compare the checksum.")] = False,
    ids_from: IdsFrom = "",
    collection: Collection = "",
    sample: Annotated[
        float, typer.Option(min=0.0001, max=100, help="Of the node's files, look at so many percent.")
    ] = 100.0,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch lost files again; have wrong entries changed at their origin.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Repair above the brake, too.")] = False,
    remove_dark: Annotated[
        bool, typer.Option("--remove-dark", help="With --repair: delete dark files that are old enough.")
    ] = False,
    afresh: Annotated[
        bool, typer.Option("--afresh", help="Begin anew, though an earlier run was interrupted.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="Files that are read at once.")] = None,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Verify this replica node; with ids, ask where a dataset's copies are said to be. Exit 1 if something is wrong.

    Without ids, at a replica node: the disk, the node's records and the federation's entries are compared. Dark files
    are on disk and in no record; missing, truncated, wrong and unreadable ones are not as they were verified; entries
    may be wrong. What is interrupted goes on where it was. More dark, or more bad, files than
    FEDSTAC_REPLICA_BRAKE_PERCENT stop the repair. A file that cannot be read is never deleted. Dark files younger than
    FEDSTAC_REPLICA_DARK_DAYS are never touched.

    With ids, from anywhere: each address is asked whether the file is there, of the right size. No token is sent to
    these addresses. Of those that are not http(s) nothing can be said: `skipped`.
    """
    if not ids and not ids_from:
        if node:
            raise typer.BadParameter("--node is for datasets' copies: name their ids, or leave it out")
        if (force or remove_dark) and not repair:
            raise typer.BadParameter("--force and --remove-dark need --repair")
        settings = environment.load()
        verifying.verify_node(form_of(ctx, output), verifying.NodeVerification(
            by_checksum=checksums, sample=sample, repairs=repair, is_forced=force, removes_dark=remove_dark,
            afresh=afresh, threads=threads, brake_percent=settings.replica_brake_percent,
            dark_days=settings.replica_dark_days,
        ))  # fmt: skip
        return
    own = {"--repair": repair, "--force": force, "--remove-dark": remove_dark, "--afresh": afresh,
           "--threads": threads is not None, "--sample": sample < 100}  # fmt: skip
    if unfit_options := [option for option, is_given in own.items() if is_given]:
        verb = "is" if len(unfit_options) == 1 else "are"
        raise typer.BadParameter(
            f"{', '.join(unfit_options)} {verb} for the node's own verification: leave out the ids"
        )
    form = form_of(ctx, output)
    options = ChangeOptions(ctx, ids or [], ids_from, collection, True, False, output, url, token)
    ids_to_verify, counts = bulk.ids_of(options), {"ok": 0, "wrong": 0, "skipped": 0}
    headers = {"User-Agent": f"fedstac/{__version__}"}
    with (
        client_of(ctx, url, token) as client, ThreadPoolExecutor(CALLS) as calls,
        open_http(httpx.Client, timeout=SECONDS, follow_redirects=True, headers=headers) as web,
        terminal.bars(["verified"], form) as bars, terminal.Listing(form, ()) as listing,
    ):  # fmt: skip
        for id in ids_to_verify:
            dataset = client.get(id, collection=bulk.collection_of(id, collection, client))
            copies = [copy for copy in dataset.files if node in ("", copy.node)]
            for copy, (status, reason) in zip(
                copies, calls.map(lambda one: _look(web, one, checksums), copies), strict=True
            ):
                counts[status] += 1
                bars.set("verified", sum(counts.values()), None)
                _show(form, listing, copy, status, reason)
    say(", ".join(f"{name} {n}" for name, n in counts.items() if n) or "there are no copies to look at",
        "red" if counts["wrong"] else "green")  # fmt: skip
    if counts["wrong"]:
        raise typer.Exit(terminal.REJECTED)


def _show(form: Output, listing: terminal.Listing, copy: File, status: str, reason: str) -> None:
    if form is not Output.TABLE:
        listing.row({"id": copy.dataset, "node": copy.node, "asset": copy.asset, "href": copy.href, "status": status,
                     "detail": reason}, ())  # fmt: skip
    elif status == "wrong":
        out(for_terminal(f"wrong  {copy.node}  {copy.href}"), "red")
        out(for_terminal(f"  {reason}"))


def _look(web: httpx.Client, copy: File, checksums: bool) -> tuple[str, str]:
    """Return ok, wrong or skipped, and why."""
    if not copy.href.startswith(("http://", "https://")):
        return "skipped", f"{urlsplit(copy.href).scheme or 'no'} address"
    try:
        faults = _faults_of_content(web, copy) if checksums else _faults_of_head(web, copy)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        faults = [str(error) or type(error).__name__]
    return ("wrong", "; ".join(faults)) if faults else ("ok", "")


def _faults_of_head(web: httpx.Client, copy: File) -> Sequence[str]:
    response = web.head(copy.href, headers={"Accept-Encoding": "identity"})
    if not response.is_success:
        return [f"answered {response.status_code} {response.reason_phrase}"]
    length = response.headers.get("content-length", "")
    if copy.size is not None and length.isdecimal() and int(length) != copy.size:
        return [f"{length} bytes, and {copy.size} in the dataset"]
    return []


def _faults_of_content(web: httpx.Client, copy: File) -> Sequence[str]:
    digest, size = hashlib.sha256(), 0
    with web.stream("GET", copy.href, headers={"Accept-Encoding": "identity"}) as response:
        if not response.is_success:
            return [f"answered {response.status_code} {response.reason_phrase}"]
        for chunk in response.iter_raw():
            digest.update(chunk)
            size += len(chunk)
    faults = [f"{size} bytes, and {copy.size} in the dataset"] if copy.size not in (None, size) else []
    if copy.checksum and copy.checksum.startswith(SHA256) and copy.checksum != SHA256 + digest.hexdigest():
        faults.append(f"checksum {SHA256}{digest.hexdigest()}, and {copy.checksum} in the dataset")
    return faults
