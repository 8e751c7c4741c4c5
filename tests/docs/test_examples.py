"""The services that pages show are those that the scenarios run."""

from __future__ import annotations

import pytest

from tests.docs.shell import REPOSITORY

PAGES = {
    "service_node.py": "docs/deletion.md",
    "download_service.py": "docs/services.md",
    "search_service.py": "docs/services.md",
    "identifier_service.py": "docs/services.md",
}


def test_every_example_is_in_a_page() -> None:
    assert {path.name for path in (REPOSITORY / "examples").glob("*.py")} == PAGES.keys()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_example_as_it_is(name: str) -> None:
    example = (REPOSITORY / "examples" / name).read_text()
    assert f"```python\n{example}```\n" in (REPOSITORY / PAGES[name]).read_text()
