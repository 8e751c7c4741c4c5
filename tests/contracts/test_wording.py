"""What the command line shows to people names commands, and no HTTP calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from fedstac.cli import app
from fedstac.cli.wording import COMMANDS, in_commands

SOURCE = Path(__file__).resolve().parents[2] / "src" / "fedstac"
CALL = re.compile(r"\b(GET|HEAD|POST|PUT|PATCH|DELETE) /")
# Sentences about paths that no command asks for.
ELSEWHERE = ("there is nothing at {}; GET / has links", "What GET /scope tells")


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Return every sentence of the package that names a call, with `{}` for what is put in; no docstrings."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body and isinstance(node.body[0], ast.Expr)
        }  # fmt: skip
        fragments = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }  # fmt: skip
        skipped = docstrings | fragments
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
                found.add(node.value)
    return sorted(text for text in found if CALL.search(text) and len(text.split()) > 4)


def test_calls_in_a_sentence_become_commands(sentences: list[str]) -> None:
    assert len(sentences) > 10
    of_commands = [sentence for sentence in sentences if not sentence.startswith(ELSEWHERE)]
    without = [sentence for sentence in of_commands if CALL.search(in_commands(sentence))]
    assert not without, "cli/wording.py has no command for these calls"


def _found(command: Any, words: Sequence[str]) -> Any:
    """Return the command that the words name, below this one."""
    for word in words:
        if not hasattr(command, "commands"):
            break  # an argument
        command = command.commands[word]
    return command


@pytest.mark.parametrize("text", [command for _, command in COMMANDS if "fedstac " in command])
def test_commands_in_sentences_exist_with_their_options(text: str) -> None:
    words = text[text.index("fedstac ") :].split()[1:]
    options = [word for word in words if word.startswith("-")]
    command = _found(typer.main.get_command(app), [word for word in words if not word.startswith(("-", "\\"))])
    assert set(options) <= {option for parameter in command.params for option in parameter.opts}


def test_a_sentence_is_a_sentence_still() -> None:
    message = "there is no collection 'X' here; GET /collections lists those there are"
    assert in_commands(message) == "there is no collection 'X' here; fedstac collections list lists those there are"


def test_who_is_not_logged_in_is_told_the_command() -> None:
    message = "this needs a bearer token; log in and send the header `Authorization: Bearer <token>`"
    assert in_commands(message) == "this needs a bearer token; set FEDSTAC_TOKEN, or run fedstac login"
    assert message in (SOURCE / "api/people/identity.py").read_text()
