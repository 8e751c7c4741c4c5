"""Tables are tested as tables: everything that is listed somewhere is complete, documented and alike."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedstac.domain.actions import ACTIONS
from fedstac.domain.errors import Problem, problems
from fedstac.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]


PROBLEMS = {problem.name: problem for problem in problems()}


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_every_problem_says_when_it_occurs(name: str) -> None:
    problem: type[Problem] = PROBLEMS[name]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", problem.name)
    assert 400 <= problem.status <= 599
    assert problem.title
    assert problem.__doc__
    assert problem.__doc__ != (problem.__bases__[0].__doc__)


def test_problem_names_are_unique() -> None:
    assert not [name for name, count in Counter(problem.name for problem in problems()).items() if count > 1]


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_described_and_read(name: str) -> None:
    assert Settings.model_fields[name].description
    sources = (path.read_text() for path in (REPOSITORY / "src").rglob("*.py") if path.name != "settings.py")
    assert any(re.search(rf"\.{name}\b", source) for source in sources), "an option that nobody reads"


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_every_action_is_a_frozen_value_with_a_decision(name: str) -> None:
    action: Any = ACTIONS[name].command
    assert action.__doc__
    assert action.__dataclass_params__.frozen
    assert not inspect.iscoroutinefunction(action.decide)


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/reference.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run `make docs`: {done.stdout}{done.stderr}"


def test_no_address_of_a_package_source_and_no_machine_path_is_committed() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    host = re.compile(r"py(?:thonhosted|pi\.org)|registry\.npmjs|(?<![\w.])/(?:work|root)/[a-z.]")
    found = [
        name
        for name in tracked
        if (path := REPOSITORY / name).suffix in {".py", ".md", ".toml", ".sql", ".lock", ".sh", ".yml", ".json"}
        and path.exists()
        and host.search(path.read_text(errors="ignore"))
    ]
    assert not found


def test_decisions_are_numbered_one_by_one() -> None:
    pages = sorted((REPOSITORY / "docs" / "adr").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    assert [int(page.read_text().removeprefix("# ").partition(".")[0]) for page in pages] == list(
        range(1, len(pages) + 1)
    )
