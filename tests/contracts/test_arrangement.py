"""How the tests are arranged: helpers stand in modules of their own. And what the package does in one place alone."""

from __future__ import annotations

import ast

from tests.support.places import REPOSITORY

TESTS = REPOSITORY / "tests"


def imported_modules(tree: ast.AST) -> set[str]:
    """Return what a module imports by its full name, modules and names of modules alike."""
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return imports


def is_pytests(module: str) -> bool:
    """Return whether pytest alone loads a module: it holds tests, or fixtures for those beside it."""
    path = REPOSITORY.joinpath(*module.split(".")).with_suffix(".py")
    return module.startswith("tests.") and path.name.startswith(("test_", "conftest")) and path.exists()


def test_no_module_imports_a_test_module_or_a_conftest() -> None:
    imports = [
        f"{path.relative_to(REPOSITORY)} imports {module}"
        for path in sorted(TESTS.rglob("*.py"))
        for module in sorted(imported_modules(ast.parse(path.read_text())))
        if is_pytests(module)
    ]
    assert imports == [], "put what they share into tests/support"


def test_workers_ask_in_one_place_whether_a_session_goes_on() -> None:
    """A connection of a pool whose session has ended raises an error, whatever it is asked (db/connections.is_open)."""
    package = REPOSITORY / "src" / "fedstac"
    asking_files = [
        str(path.relative_to(package)) for room in ("api", "db", "workers") for path in (package / room).rglob("*.py")
        if ".is_closed()" in path.read_text()
    ]  # fmt: skip
    assert asking_files == ["db/connections.py"]
