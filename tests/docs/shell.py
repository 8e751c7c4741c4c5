"""The shell commands of the documentation, as a reader would paste them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
FIRST_FEDERATION = "From nothing to two nodes on a Kafka broker"  # a section that takes a broker
SHELL = ("sh", "bash", "shell", "console")
# an indented block is a shell's if one of its lines begins with a program, or with settings for one
PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S* )*(?:export|fedstac|\.venv/bin/\w+|make|curl|pip|pipx|uv|python3?|psql|pg_\w+|createdb|sudo|nginx|"
    r"journalctl|systemctl|cp|touch|docker)(?: |$)"
)


@dataclass(frozen=True)
class Command:
    """One command, its continuation lines and its here-document included, without its comment."""

    page: str
    section: str  # the heading that it stands under
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def commands(page: Path) -> list[Command]:
    """Return the commands of a page in their order."""
    name, lines = str(page.relative_to(REPOSITORY)), page.read_text().splitlines()
    return [
        Command(name, _section(lines[: start - 1]), start, text)
        for first, block in _blocks(lines)
        for start, text in _commands(first, block)
    ]


def _section(before: list[str]) -> str:
    return next((line.lstrip("# ") for line in reversed(before) if re.match("#{1,4} ", line)), "")


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield blocks of shell commands with the number of their first line."""
    n = 0
    while n < len(lines):
        if lines[n].startswith("```"):
            language = lines[n].removeprefix("```").strip()
            end = next(m for m in range(n + 1, len(lines)) if lines[m].startswith("```"))
            if language in SHELL:
                yield n + 2, lines[n + 1 : end]
            n = end + 1
        elif lines[n].startswith("    ") and (n == 0 or not lines[n - 1].strip()):
            end = n
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            block = [line[4:] for line in lines[n:end]]
            if any(PROGRAM.match(line) for line in block):
                yield n + 1, block
            n = end
        else:
            n += 1


def _commands(first: int, block: list[str]) -> Iterator[tuple[int, str]]:
    n = 0
    while n < len(block):
        start, text = n, block[n]
        while text.endswith("\\"):
            n += 1
            text += "\n" + block[n]
        if end := re.search(r"<<'?(\w+)'?", text):
            while text.splitlines()[-1] != end[1]:
                n += 1
                text += "\n" + block[n]
        n += 1
        text = re.sub(r"\s+#.*$", "", text) if "\n" not in text else text
        if text.strip() and not text.lstrip().startswith("#"):
            yield first + start, text.strip()
