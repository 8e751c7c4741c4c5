"""Commands about rights: what somebody may do and why, policy files, and fedstac's own groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedstac.cli import terminal
from fedstac.cli.options import Form, Token, Url, client_of, examples, form_of
from fedstac.cli.terminal import Output, complain, for_terminal, out, say
from fedstac.domain import explaining
from fedstac.domain.groups import PolicyBroken
from fedstac.domain.policy import Action, Resource

commands = typer.Typer(no_args_is_help=True, help="What somebody may do, and why; policy files.")
groups = typer.Typer(no_args_is_help=True, help="A node's own groups: who publishes for an institution.")
member = typer.Typer(no_args_is_help=True, help="Add and remove members of a group.")
manager = typer.Typer(no_args_is_help=True, help="Name those who look after a group.")
groups.add_typer(member, name="member")
groups.add_typer(manager, name="manager")

As = Annotated[
    list[str] | None,
    typer.Option("--as", metavar="WHO", help="A name as in the logs, role:…, group:…, entitlement:…, own:…"),
]
GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.")]
Whom = Annotated[str, typer.Argument(metavar="PRINCIPAL", help="As `fedstac whoami` shows it: in the logs.")]


@commands.command(
    epilog=examples(
        "fedstac access explain publish CMIP6.CMIP.NCAR.CESM2.historical.r1i1p1f1.Amon.tas.gn.v20190401",
        "fedstac access explain retract CMIP6.… --as person:6f9c… -o json",
        "fedstac access explain replicate CMIP6.… --at east --as role:node:east --policy policy.yaml",
        codes=True,
    )
)
def explain(
    ctx: typer.Context,
    action: Annotated[Action, typer.Argument(help="What would be done.")],
    item: Annotated[str, typer.Argument(help="A dataset's id.")],
    who: As = None,
    collection: Annotated[str, typer.Option("--collection", "-c", help="If the id does not begin with it.")] = "",
    institution: Annotated[str, typer.Option(help="If the id does not say it.")] = "",
    at: Annotated[list[str] | None, typer.Option("--at", metavar="NODE", help="Node that is touched.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Ask this policy file instead of a server.")] = None,
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Say whether somebody may do something with a dataset, by which rule, and why; exit 4 if not.

    Without --as it is about you; about others administrators may ask.
    """
    form = form_of(ctx, output)
    if policy is not None:
        decision = _offline(policy, action, item, who or [], collection, institution, at or [])
    else:
        with client_of(ctx, url, token) as server:
            decision = server.explain(
                action, item, who=who or (), collection=collection, institution=institution, nodes=at or ()
            )
    if form is not Output.TABLE:
        terminal.dump(decision)
    else:
        out("allowed" if decision["allowed"] else "denied", "green" if decision["allowed"] else "red")
        home = f"{decision['home']['node']}, {decision['home']['href']}" if decision["home"] else None
        for label, text in (("rule", decision["rule"]), ("why", decision["reason"]), ("home", home)):
            if text:
                out(f"  {label:<6}{for_terminal(text)}")
    if not decision["allowed"]:
        raise typer.Exit(terminal.NOT_AUTHORISED)


def _offline(
    path: Path, action: Action, item: str, who: list[str], collection: str, institution: str, nodes: list[str]
) -> dict[str, Any]:
    """Return the decision of a policy file about a described person. The node is taken to be the dataset's home."""
    from fedstac.identity import policy_files
    from fedstac.vocabularies.checker import open_checker

    try:
        policy = policy_files.read(_content(path))
        principal = explaining.principal_of(who)
    except PolicyBroken as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--policy") from None
    except explaining.NotDescribed as error:
        raise typer.BadParameter(str(error), param_hint="--as") from None
    vocabularies = open_checker().vocabularies
    project = collection or explaining.project_of(item, vocabularies.projects())
    vocabulary = vocabularies.current(project)
    at = institution or (explaining.institution_of(item, vocabulary) if vocabulary else None)
    resource = Resource(item, project, at, frozenset(nodes))
    home = policy.home_of(resource)
    verdict = policy.at(home.node if home else None).verdict(principal, action, resource)
    return explaining.as_json(verdict, principal, action, resource) | {
        "home": {"node": home.node, "href": home.url} if home else None
    }


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PolicyBroken(error.strerror or type(error).__name__) from None


@commands.command(epilog=examples("fedstac access check policy.yaml", codes=True))
def check(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A policy file (YAML).")],
    output: Form = None,
) -> None:
    """Check a policy file; every fault with its line, exit 1 if there is one."""
    from fedstac.identity import policy_files

    form, faults, policy = form_of(ctx, output), tuple[str, ...](), None
    try:
        policy = policy_files.read(_content(file))
    except PolicyBroken as error:
        faults = error.faults
    if form is not Output.TABLE:
        terminal.dump({"valid": not faults, "faults": faults})
    elif policy is not None:
        out(f"{file}: {len(policy.rules)} rules, {len(policy.homes)} homes", "green")
    for fault in faults if form is Output.TABLE else ():
        complain(f"{file}: {fault}")
    if faults:
        raise typer.Exit(terminal.REJECTED)


# --- own groups ---


@groups.command("list", epilog=examples("fedstac groups list", codes=True))
def list_groups(ctx: typer.Context, output: Form = None, url: Url = "", token: Token = "") -> None:
    """List the groups that you belong to, look after or may manage."""
    form = form_of(ctx, output)
    with client_of(ctx, url, token) as server:
        own_groups = server.groups()
    with terminal.Listing(form, ("name", "project", "institution", "members", "managers")) as listing:
        for each in own_groups:
            counts = (str(len(each["members"])), str(len(each["managers"])))
            listing.row(each, (each["name"], each["project"], each["institution"], *counts))


@groups.command("show", epilog=examples("fedstac groups show ncar", codes=True))
def show_group(ctx: typer.Context, group: GroupName, output: Form = None, url: Url = "", token: Token = "") -> None:
    """Show a group: what it is for, its members and its managers."""
    with client_of(ctx, url, token) as server:
        _show(form_of(ctx, output), server.group(group))


@groups.command(epilog=examples("fedstac groups create ncar --project CMIP6 --institution NCAR", codes=True))
def create(
    ctx: typer.Context,
    group: GroupName,
    project: Annotated[str, typer.Option(help="Members publish for this project; * is all.")],
    institution: Annotated[str, typer.Option(help="And for this institution; * is all.")],
    title: Annotated[str, typer.Option(help="For people.")] = "",
    output: Form = None,
    url: Url = "",
    token: Token = "",
) -> None:
    """Make a group, for a project and an institution."""
    with client_of(ctx, url, token) as server:
        created_group = server.create_group(group, project=project, institution=institution, title=title)
        _show(form_of(ctx, output), created_group)


@groups.command(epilog=examples("fedstac groups delete ncar", codes=True))
def delete(ctx: typer.Context, group: GroupName, url: Url = "", token: Token = "") -> None:
    """Delete a group; its members lose what they had by it."""
    with client_of(ctx, url, token) as server:
        server.delete_group(group)
    say(f"the group {group} is gone")


def _show(form: Output, group: dict[str, Any]) -> None:
    if form is not Output.TABLE:
        terminal.dump(group)
        return
    out(for_terminal(group["name"]), "bold")
    for label, value in (
        ("for", f"{group['project']} × {group['institution']}"), ("title", group["title"]),
        ("members", ", ".join(group["members"])), ("managers", ", ".join(group["managers"])),
    ):  # fmt: skip
        if value:
            out(f"  {label:<10}{for_terminal(value)}")


@member.command("add", epilog=examples("fedstac groups member add ncar person:6f9c…", codes=True))
def add_member(ctx: typer.Context, group: GroupName, principal: Whom, url: Url = "", token: Token = "") -> None:
    """Add a member."""
    with client_of(ctx, url, token) as server:
        server.change_member(group, principal, add=True)


@member.command("remove", epilog=examples("fedstac groups member remove ncar robot-ncar", codes=True))
def remove_member(ctx: typer.Context, group: GroupName, principal: Whom, url: Url = "", token: Token = "") -> None:
    """Remove a member."""
    with client_of(ctx, url, token) as server:
        server.change_member(group, principal, add=False)


@manager.command("add", epilog=examples("fedstac groups manager add ncar person:6f9c…", codes=True))
def add_manager(ctx: typer.Context, group: GroupName, principal: Whom, url: Url = "", token: Token = "") -> None:
    """Name a manager, who adds and removes members."""
    with client_of(ctx, url, token) as server:
        server.change_member(group, principal, add=True, manager=True)


@manager.command("remove", epilog=examples("fedstac groups manager remove ncar person:6f9c…", codes=True))
def remove_manager(ctx: typer.Context, group: GroupName, principal: Whom, url: Url = "", token: Token = "") -> None:
    """Take the management of a group from somebody."""
    with client_of(ctx, url, token) as server:
        server.change_member(group, principal, add=False, manager=True)
