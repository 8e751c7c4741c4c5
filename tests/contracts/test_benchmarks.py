"""Benchmarks can be started, and stay out of the tests: no test asserts how fast something is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CLOCKS = ("perf_counter", "monotonic", "time")  # process_time may tell what runs away from what does not


def test_the_benchmarks_can_be_asked_for_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


def test_the_peer_is_pinned_with_hashes_and_without_addresses() -> None:
    lock = (REPOSITORY / "benchmarks" / "peer-requirements.lock").read_text()
    assert "stac-fastapi-pgstac==7.2.0" in lock
    assert "pypgstac==0.10.0" in lock
    assert "://" not in lock
    assert lock.count("--hash=") >= lock.count("==")


def test_no_test_asserts_an_elapsed_time() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in sorted((REPOSITORY / "tests").rglob("*.py"))
        for line in _elapsed_times(ast.parse(path.read_text()))
    ]
    assert found == []


def _elapsed_times(tree: ast.AST) -> Iterator[int]:
    """Yield lines of asserts on "now less then". A deadline ("now < until") is patience, and may be there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            differences = [part for part in ast.walk(node.test) if isinstance(part, ast.BinOp)]
            if any(isinstance(part.op, ast.Sub) and _reads_clock(part) for part in differences):
                yield node.lineno


def _reads_clock(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS
        for node in ast.walk(tree)
    )
