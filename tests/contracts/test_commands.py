"""Every command explains itself: what it does, an example, its exit codes, and a form for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from fedstac.cli import app

# Commands that show nothing but that they did it: the exit code says so, or they run until they are stopped.
WITHOUT_RESULT = {
    "alive", "admin erase-person", "admin new-epoch", "audit export", "grant export", "groups delete",
    "file-server", "groups manager add", "groups manager remove", "groups member add", "groups member remove",
    "identity-provider", "index-node", "logout", "migrate", "notifications remove", "notifications test", "notifier",
    "rebuild", "relay", "replica-node", "sequencer", "serve", "sink remove", "subscription remove",
    "vocab schema", "worker",
}  # fmt: skip


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every command below this one, with its words."""
    for name, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from _commands(below, (*path, name))
        else:
            yield " ".join((*path, name)), below


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_help_examples_and_exit_codes(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert "Examples" in (command.epilog or "")
    assert f"fedstac {name}" in command.epilog
    assert "Exit codes" in command.epilog


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_with_a_result_gives_it_as_json_too(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert ("-o" in options) is (name not in WITHOUT_RESULT)
