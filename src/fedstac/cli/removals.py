"""Commands that take datasets out of sight: under quarantine and back, deleted, purged. cli/changes.py marks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fedstac.cli import bulk, bulk_changes
from fedstac.cli.bulk import ChangeOptions, Collection, DryRun, Ids, IdsFrom, Job, One, Yes
from fedstac.cli.bulk_changes import Digest, Filter, ManyOptions
from fedstac.cli.options import Form, Token, Url, examples
from fedstac.client.values import ChangeResult, Dataset

commands = typer.Typer()


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac quarantine CMIP6.….v20190401 --reason 'personal data?' --case T-1041",
                    "fedstac quarantine --ids ids.txt --reason 'licence' --contact data@a.example",
                    codes=True),
)  # fmt: skip
def quarantine(
    ctx: typer.Context,
    ids: Ids = None,
    reason: Annotated[str, typer.Option(help="Why, for those who decide.")] = "",
    case: Annotated[str, typer.Option(help="Number of the case elsewhere. Readers see it.")] = "",
    contact: Annotated[str, typer.Option(help="Whom to ask. Readers see it.")] = "",
    link: Annotated[
        list[str] | None, typer.Option("--link", metavar="URL", help="Correspondence. Repeatable.")
    ] = None,
    ids_from: IdsFrom = "", filter: Filter = "", digest: Digest = "",
    collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Put datasets under quarantine: found by their id alone, without files. Nothing is erased.

    A repeat replaces what was said of the case. Exit 3 if a dataset is unknown. With --filter or --digest in one go, as
    `fedstac mark`.
    """
    if not reason.strip():
        raise typer.BadParameter("say why nobody should use the datasets for now", param_hint="--reason")

    def perform(one: One) -> ChangeResult:
        return one.client.quarantine(
            one.id, reason=reason, case=case or None, contact=contact or None, links=link or (),
            collection=one.collection, if_match=one.if_match, dry_run=one.dry_run,
        )  # fmt: skip

    def foreseen(dataset: Dataset) -> Mapping[str, Any]:
        notice = {name: value for name, value in (("case", case), ("contact", contact)) if value}
        flags = {"latest": False, "fedstac:state": "quarantined", "fedstac:quarantine": notice}
        return {**dataset.document, "properties": {**dataset.properties, **flags}}  # assets are hidden, and stay

    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    many = ManyOptions(options, filter, digest)
    if many.is_wanted:
        members = {"reason": reason, "case": case, "contact": contact, "links": link}
        members = {name: value for name, value in members.items() if value}
        bulk_changes.run("quarantine", {"quarantine": members}, many)
        return
    bulk.run(Job("quarantine", perform, foreseen), options)


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac release CMIP6.….v20190401 --decision 'nothing personal in it'", codes=True),
)
def release(
    ctx: typer.Context, ids: Ids = None,
    decision: Annotated[str, typer.Option(help="What was decided, and why. It closes the case.")] = "",
    ids_from: IdsFrom = "", filter: Filter = "", digest: Digest = "",
    collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """End quarantines: every byte is as it was. With --filter or --digest in one go, as `fedstac mark`."""
    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    many = ManyOptions(options, filter, digest)
    if many.is_wanted:
        bulk_changes.run("release", {"decision": decision} if decision else {}, many)
        return
    bulk.run(Job("release", lambda one: one.client.release(one.id, decision=decision or None, collection=one.collection,
                                                           dry_run=one.dry_run)), options)  # fmt: skip


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac delete CMIP6.….v20190401 --dry-run    # what is missing?",
                    "fedstac delete --ids ids.txt --yes -o ndjson", codes=True),
)  # fmt: skip
def delete(
    ctx: typer.Context, ids: Ids = None,
    ids_from: IdsFrom = "", collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Delete marked datasets for good. A tombstone stays, and the id is never used again.

    What is still missing before is listed, and nothing is done. On a terminal the id has to be typed; elsewhere --yes
    is needed.
    """
    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    bulk.run(Job("delete", lambda one: one.client.delete(one.id, collection=one.collection, dry_run=one.dry_run),
                 is_final=True), options)  # fmt: skip


@commands.command(
    rich_help_panel="Client",
    epilog=examples("fedstac purge CMIP6.….v20190401", codes=True),
)
def purge(
    ctx: typer.Context, ids: Ids = None,
    ids_from: IdsFrom = "", collection: Collection = "", yes: Yes = False, dry_run: DryRun = False,
    output: Form = None, url: Url = "", token: Token = "",
) -> None:  # fmt: skip
    """Remove what a node still has of deleted or cleared datasets in its log, requests and messages.

    Brokers keep what they have until their retention ends. On a terminal the id has to be typed; elsewhere --yes is
    needed.
    """
    options = ChangeOptions(ctx, ids or [], ids_from, collection, yes, dry_run, output, url, token)
    bulk.run(Job("purge", lambda one: one.client.purge(one.id, collection=one.collection, dry_run=one.dry_run),
                 is_final=True), options)  # fmt: skip
