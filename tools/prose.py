#!/usr/bin/env python3
"""Find names and docstrings that a reader has to decode (style: docs/contributing.md, Prose).

Three checks over src/fedstac:
- a variable, parameter, field or function that is named by what happened to a thing, not by what the thing is;
- a docstring of a function that does not start with a verb that says what the function does;
- a class name that stands for two things.

Prints a line for each finding and exits with 1 if there is one. `tools/prose.py PATH …` looks at these files only.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTICIPLES = """
accepted asked begun chosen claimed counted done found given gone heard held judged kept known left listed made meant
moved named noted offered promised queued refused remembered said seen sent shown spoken stated stored taken told
understood wanted watched written
"""
VERBS = """
accept acknowledge add admit advance align allow answer append apply ask assert assign assume authorise await begin
bind bring build cache call cancel change check choose claim clean clear close collect combine compare compile
complete compress compute confirm connect consume continue convert copy count create cut decide decode decompress
delete deliver deny derive describe detect discard dispatch divide do download draw drop encode end ensure enter erase
establish estimate evaluate examine exit expand explain export express extend extract fail fetch fill filter find
finish fit flatten fold follow forget format forward gather generate get give grant group guard guess handle hash hide
hold identify ignore import increase inflate inform initialise insert inspect install invalidate issue iterate join
judge keep leave let limit link list listen load locate lock log look lower mail make map mark match measure merge
migrate move name normalise note notify obtain offer open order pack page parse pass pause perform pick place plan
post prepare prevent print process produce promote prove provide publish pull push put queue quote raise rank read
rebuild recognise record recover redirect reduce refresh refuse register reject release reload remember remove rename
render renew repair repeat replace reply report request require rescue reset resolve respond restart restore resume
retract retry return reverse revoke rewrite roll round run save say scan schedule search seek select send separate
sequence serve set settle shift show shut sign skip sleep sort spell split start state stop store stream strip submit
substitute subtract suggest summarise supersede supervise suspend swap sweep switch take tell terminate test track
transform translate trim truncate try turn undo unlock unpack update upgrade use validate verify visit wait wake walk
warn watch withdraw work wrap write yield
"""
NAMES_OF_TWO = frozenset[str]()  # classes that may stand in two modules: none


def findings(paths: list[Path]) -> Iterator[str]:
    """Yield a line for each finding, in the order of the files."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        tree = ast.parse(path.read_text())
        where = path.relative_to(ROOT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{where}:{node.lineno}")
            for line, name in _names(node):
                yield f"{where}:{line}: `{name}` says what happened to a thing; name what it is"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from (f"{where}:{node.lineno}: {fault}" for fault in _docstring_faults(node))
    for name, modules in places.items():
        if len(modules) > 1 and name not in NAMES_OF_TWO:
            yield f"{modules[0]}: the class `{name}` stands for {len(modules)} things: {', '.join(modules)}"


def _names(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield what a node gives a name to that is a participle."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            pass
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            pass
        case _:
            return
    if name.strip("_") in PARTICIPLES.split():
        yield node.lineno, name


def _docstring_faults(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield what is wrong with the first word of a function's docstring. A property is described as a thing."""
    text = ast.get_docstring(node)
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    if not text or decorators & {"property", "cached_property", "fixture"}:
        return
    first = text.split()[0].strip(",.:;").lower()
    if first not in VERBS.split():
        yield f"the docstring of {node.name} starts with {text.split()[0]!r}; start with a verb: Return, Store, Refuse"


def main() -> int:
    """Print the findings in the files that the command line names, or in all of src."""
    paths = [Path(name).resolve() for name in sys.argv[1:]] or sorted((ROOT / "src").rglob("*.py"))
    lines = list(findings(paths))
    print("\n".join(lines) if lines else "prose: nothing found")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
