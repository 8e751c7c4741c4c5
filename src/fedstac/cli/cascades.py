"""The deletion of a collection with its datasets: what it affects is shown, a number is typed, bars move."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import typer

from fedstac.cli import terminal
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.client import Client
from fedstac.domain.cascade import LONGEST_REASON, CascadeState

LOOK_SECONDS: Final = 0.5
Json = dict[str, Any]


def delete(client: Client, id: str, form: Output, *, reason: str, confirm: int | None, dry_run: bool) -> None:
    """Show what is affected, ask for the number of datasets, begin, and follow until all are marked."""
    effects = client.cascade_effects(id)
    if dry_run:
        _show_effects(effects, form)
        return
    if not 0 < len(reason.strip()) <= LONGEST_REASON:
        raise typer.BadParameter(f"say why, in 1 to {LONGEST_REASON} characters", param_hint="--reason")
    if confirm is None:
        confirm = _ask(id, effects, form)
    client.begin_cascade(id, confirm=confirm, reason=reason)
    try:
        follow(client, id, form, wait=True)
    except KeyboardInterrupt:
        say(f"it goes on at the server; see fedstac collections cascade {for_terminal(id)}")
        raise


def _ask(id: str, effects: Json, form: Output) -> int:
    """Return the number of datasets as somebody typed it. Exit where it is another one."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter(
            f"say how many datasets {id} has where nobody is asked: --dry-run shows it", param_hint="--confirm"
        )
    if form is Output.TABLE:
        _show_effects(effects, form)
    answer = typer.prompt(
        f"all {effects['confirm']} datasets of {for_terminal(id)} are marked for deletion; type how many they are",
        default="", show_default=False, err=True,
    )  # fmt: skip
    if answer.strip() != str(effects["confirm"]):
        say("nothing is changed")
        raise typer.Exit(terminal.REJECTED)
    return int(effects["confirm"])


def follow(client: Client, id: str, form: Output, *, wait: bool, cancel: bool = False) -> None:
    """Show how far a deletion is. wait: until all datasets are marked. cancel: end it first."""
    cascade = client.cancel_cascade(id) if cancel else client.cascade(id)
    if wait and not cancel:
        with terminal.bars(["marked"], form) as bars:
            while cascade["state"] == CascadeState.MARKING:
                bars.set("marked", cascade["datasets"] - cascade["to_mark"], cascade["datasets"])
                time.sleep(LOOK_SECONDS)
                cascade = client.cascade(id)
    if form is not Output.TABLE:
        terminal.dump(cascade)
        return
    out(f"{for_terminal(id)}  {cascade['state']}", "bold")
    for label, value in (
        ("datasets", cascade["datasets"]), ("to mark", cascade["to_mark"]), ("marked", cascade["marked"]),
        ("deleted", cascade["deleted"]), ("refused", cascade["refused"] or ""), ("because", cascade["refusal"]),
        ("reason", cascade["reason"]), ("by", cascade["actor"]), ("begun", cascade["begun_at"]),
        ("ended", cascade["ended_at"]),
    ):  # fmt: skip
        if value not in ("", None):
            out(f"  {label:<10}{for_terminal(value)}")


def _show_effects(effects: Json, form: Output) -> None:
    if form is not Output.TABLE:
        terminal.dump(effects)
        return
    datasets, files = effects["datasets"], effects["files"]
    states = ", ".join(f"{count} {state}" for state, count in datasets["by_state"].items())
    groups, messages = effects["own_groups"], effects["notifications"]
    out(for_terminal(effects["collection"]), "bold")
    for label, text in (
        ("lineages", effects["lineages"]), ("datasets", f"{datasets['total']}" + (f" ({states})" if states else "")),
        ("files", f"{files['count']} with {files['bytes']} bytes"),
        *(("replicas", f"{each['datasets']} datasets, {each['files']} files at {each['node']}")
          for each in effects["replicas"]),
        ("groups", f"{groups['groups']} with {groups['memberships']} members and managers"),
        ("requests", f"{effects['requests']['waiting_items']} items wait, and are refused"),
        ("messages", f"{messages['destinations']} destinations are told, {messages['awaited']} results awaited"),
    ):  # fmt: skip
        out(f"  {label:<10}{for_terminal(text)}")
