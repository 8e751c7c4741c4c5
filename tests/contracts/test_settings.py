"""The environment is read in one place, and a misspelt variable is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedstac import settings

SOURCE = Path(settings.__file__).parent
WRITERS = {"cli/ready_code.py"}  # of code that runs elsewhere
READS = re.compile(r"os\.environ|os\.getenv|from os import .*environ")


def test_the_environment_is_read_in_settings_only() -> None:
    readers = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if READS.search(path.read_text())}
    assert readers - WRITERS == {"settings.py"}


def test_a_misspelt_variable_is_named_with_the_nearest_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("FEDSTAC_PUBLIC_ULR=https://west.example\nOTHER=1\n")
    monkeypatch.setenv("FEDSTAC_WORKRES", "3")
    monkeypatch.setenv("FEDSTAC_QQQQQQ", "")
    monkeypatch.setenv("FEDSTAC_WORKERS", "3")
    nearest = {variable.name: variable.nearest for variable in settings.unknown_variables()}
    assert nearest == {
        "FEDSTAC_PUBLIC_ULR": "FEDSTAC_PUBLIC_URL", "FEDSTAC_WORKRES": "FEDSTAC_WORKERS", "FEDSTAC_QQQQQQ": None,
    }  # fmt: skip


def test_a_command_names_it_on_standard_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedstac.cli", "vocab", "list", "-o", "json"], cwd=tmp_path, capture_output=True,
        text=True, check=True, env={"PATH": "", "HOME": str(tmp_path), "FEDSTAC_TOKNE": "x"},
    )  # fmt: skip
    assert done.stderr == "warning: FEDSTAC_TOKNE has no effect; did you mean FEDSTAC_TOKEN?\n"
    assert done.stdout.startswith("{")


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_state_path", lambda name: Path("~/.local/state") / name)
    with pytest.raises(settings.NoHome, match="set HOME"):
        settings.state_folder()
