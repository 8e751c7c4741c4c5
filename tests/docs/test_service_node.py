"""The service in docs/deletion.md is the one that the scenarios run."""

from __future__ import annotations

from tests.docs.shell import REPOSITORY


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (REPOSITORY / "docs/deletion.md").read_text()
    example = (REPOSITORY / "examples/service_node.py").read_text()
    assert f"```python\n{example}```\n" in page
