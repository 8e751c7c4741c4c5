"""`fedstac replica policy`, `plan` and `catalogue`: what is wanted, what a policy changes, what is not copied."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.database import with_database
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.replica_node.forms import size_in_words, time_in_words
from fedstac.cli.terminal import Output, complain, for_terminal, number, out, say
from fedstac.domain.groups import PolicyBroken

if TYPE_CHECKING:
    from fedstac.db.connections import Connection
    from fedstac.domain.replication.choosing import Source
    from fedstac.domain.replication.planning import PolicyPlan
    from fedstac.domain.replication.policy import ReplicaPolicy, ReplicaRule

commands = typer.Typer()
policy_commands = typer.Typer(no_args_is_help=True, help="The policy file of a replica node.")
commands.add_typer(policy_commands, name="policy")

MOST_CLOSURES = 3  # of a source, that are shown
PAGE = 1000
CATALOGUE_COLUMNS = ("since            ", "size      ", "files", "dataset")
WORDS = {
    "copy": "would be copied", "stop": "would be copied no more", "purge": "would be deleted here",
    "restrict": "would be served no more", "move": "would move to another folder",
    "note": "would stay, under another rule, priority or check",
}  # fmt: skip


@policy_commands.command(
    epilog=examples("fedstac replica policy check replica.yaml",
                    "fedstac replica policy check replica.yaml -o json | jq .sources", codes=True)
)  # fmt: skip
def check(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A policy file (YAML).")],
    output: Form = None,
) -> None:
    """Check a policy file and show its rules, tiers, sources and next closed times; exit 1 if it has faults."""
    from fedstac.replication import policy_file

    form = form_of(ctx, output)
    try:
        policy = policy_file.read(file)
    except policy_file.PolicyUnreadable as error:
        complain(error, terminal.USAGE)
        raise typer.Exit(terminal.USAGE) from None
    except PolicyBroken as broken:
        if form is not Output.TABLE:
            terminal.dump({"valid": False, "faults": broken.faults})
        else:
            for fault in broken.faults:
                complain(fault)
        raise typer.Exit(terminal.REJECTED) from None
    now = datetime.now(UTC)
    if form is not Output.TABLE:
        terminal.dump({"valid": True, "faults": [], **_as_json(policy, now)})
        return
    out(f"{file}: {number(len(policy.rules), 'rule')}, {number(len(policy.sources), 'source')}", "green")
    if policy.budget_bytes is not None:
        out(f"  budget {size_in_words(policy.budget_bytes)}")
    for name, folder in policy.tiers.items():
        out(f"  tier {name}: {for_terminal(folder)}")
    for rule in policy.rules:
        out(f"  rule {rule.name}: {_rule_in_words(rule)}")
    for source in policy.sources:
        out(f"  source {source.name}: {_source_in_words(source)}")
        for closure in source.calendar.next_closings(now, MOST_CLOSURES):
            reason = f", {for_terminal(closure.reason)}" if closure.reason else ""
            out(f"    closed {time_in_words(closure.start)} to {time_in_words(closure.end)}{reason}")


@policy_commands.command(epilog=examples("fedstac replica policy schema > replica-policy.schema.json", codes=True))
def schema(ctx: typer.Context, output: Form = None) -> None:
    """Print the JSON Schema of policy files, for editors."""
    from fedstac.domain.replication.policy_schema import SCHEMA

    form_of(ctx, output)
    terminal.dump(SCHEMA)


@commands.command(
    epilog=examples("fedstac replica plan", "fedstac replica plan new-policy.yaml",
                    "fedstac replica plan new-policy.yaml -o json | jq .lines", codes=True)
)  # fmt: skip
def plan(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="A policy file; without it, the one of FEDSTAC_REPLICA_POLICY.")
    ] = None,
    output: Form = None,
) -> None:
    """Show what a policy file would change here: what is copied, moved and taken away, how many bytes, by which rule.

    Nothing is changed. The node itself does the same when its policy file changes.
    """
    form = form_of(ctx, output)
    policy = _policy(file)

    async def foresee(conn: Connection) -> PolicyPlan:
        from fedstac.replication.applying import apply_policy

        return await apply_policy(conn, policy, perform=False)

    changes = with_database(foresee)
    if form is not Output.TABLE:
        lines = [asdict(line) for line in changes.lines]
        terminal.dump({"looked_at": changes.looked_at, "unchanged": changes.unchanged, "lines": lines})
        return
    for line in changes.lines:
        size = f", {size_in_words(line.bytes)}" if line.bytes else ""
        by = f"by the rule {for_terminal(line.rule)}" if line.rule else "as no rule fits"
        out(f"{number(line.datasets, 'dataset')}{size} {WORDS[line.effect]}, {by}")
    say(f"{changes.looked_at} datasets looked at, {changes.unchanged} of them stay as they are", "dim")


@commands.command(
    epilog=examples("fedstac replica catalogue", "fedstac replica catalogue --collection CMIP7",
                    "fedstac replica catalogue -o ndjson | jq -r .id", codes=True)
)  # fmt: skip
def catalogue(
    ctx: typer.Context,
    collection: Annotated[str, typer.Option("--collection", "-c", help="Only of this collection.")] = "",
    rule: Annotated[
        str | None, typer.Option("--rule", help="Only what this rule keeps out; '' is what no rule fits.")
    ] = None,
    output: Form = None,
) -> None:
    """List the datasets that are known and not copied: how large they are, why they are not, and since when."""
    form = form_of(ctx, output)
    totals = [0, 0]

    async def show(conn: Connection) -> None:
        from fedstac.db.replica import catalogue as reading

        after: int | None = 0
        while after is not None:
            datasets, after = await reading.catalogued(conn, collection=collection, rule=rule, after=after, count=PAGE)
            for each in datasets:
                totals[0], totals[1] = totals[0] + 1, totals[1] + each.size
                name = for_terminal(f"{each.collection}/{each.id}")
                cells = (time_in_words(each.since), size_in_words(each.size), each.files, f"{name}  {each.reason}")
                listing.row(asdict(each), cells)

    with terminal.Listing(form, CATALOGUE_COLUMNS) as listing:
        with_database(show)
    say(f"{number(totals[0], 'dataset')} not copied, {size_in_words(totals[1])}", "dim")


def _policy(file: Path | None) -> ReplicaPolicy:
    """Return the policy of a file, or of the node's own. The command ends where it has faults, and names each."""
    from fedstac.replication import policy_file

    path = file or environment.load().replica_policy
    if not path:
        raise environment.Misconfigured("name a policy file, or set FEDSTAC_REPLICA_POLICY")
    try:
        return policy_file.read(path)
    except PolicyBroken as broken:
        for fault in broken.faults:
            complain(fault)
        raise typer.Exit(terminal.USAGE) from None


def _rule_in_words(rule: ReplicaRule) -> str:
    decision = rule.decision
    parts = [decision.action.value]
    parts += [f"priority {decision.priority}"] if decision.priority else []
    parts += [f"tier {decision.tier}"] if decision.tier else []
    parts += [f"at most {size_in_words(rule.budget)}"] if rule.budget is not None else []
    parts += [f"checked by {for_terminal(' '.join(decision.check))}"] if decision.check else []
    superseded = f"moved to {decision.superseded_tier or 'default'}" if decision.superseded_tier is not None else None
    parts.append(f"superseded: {superseded or decision.on_superseded}")
    parts.append(f"retracted: {decision.on_retracted}")
    return ", ".join(parts)


def _source_in_words(source: Source) -> str:
    parts = [", ".join(map(str, source.hosts))]
    parts += [f"of {', '.join(sorted(source.nodes))}"] if source.nodes else []
    parts += [f"preference {source.preference}"] if source.preference else []
    parts += [f"{size_in_words(source.bandwidth)}/s"] if source.bandwidth is not None else []
    parts += [number(source.connections, "connection")] if source.connections is not None else []
    parts += ["private addresses"] if source.private else []
    return "; ".join(parts)


def _as_json(policy: ReplicaPolicy, now: datetime) -> dict[str, Any]:
    return {
        "digest": policy.digest,
        "budget": policy.budget_bytes,
        "tiers": dict(policy.tiers),
        "rules": [
            {"name": rule.name, "where": rule.where, "budget": rule.budget, **_decision_as_json(rule)}
            for rule in policy.rules
        ],
        "sources": [
            {
                "name": source.name, "hosts": [str(host) for host in source.hosts], "nodes": sorted(source.nodes),
                "preference": source.preference, "bandwidth": source.bandwidth, "connections": source.connections,
                "private": source.private, "zone": source.calendar.zone,
                "closed": [
                    {"from": closure.start, "to": closure.end, "reason": closure.reason}
                    for closure in source.calendar.next_closings(now, MOST_CLOSURES)
                ],
            }
            for source in policy.sources
        ],
    }  # fmt: skip


def _decision_as_json(rule: ReplicaRule) -> dict[str, Any]:
    decision = asdict(rule.decision)
    del decision["rule"]
    return decision
