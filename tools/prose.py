#!/usr/bin/env python3
"""Find names and docstrings that a reader has to decode. The rules are in docs/contributing.md, Prose.

    tools/prose.py [PATH …]      # files or folders; without one src, tools, benchmarks and tests

Prints a line for each finding and exits with 1 if there is one:

- a variable, parameter, field, function or class that is named by what happened to a thing: `found`, `said`, `Stored`;
- a name that layout decisions replaced;
- a docstring of a function that does not start with a verb in its base form: Return, Store, Refuse;
- a class name that two modules define, or a function that two modules define and others import by its bare name;
- a function that returns a tuple of three or more instead of a record.

EXCEPTIONS lists what stays, each with its reason. An entry that nothing needs is a finding too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
PLACES: Final = ("src", "tools", "benchmarks", "tests")

# Whole names. A participle beside a noun is a good name: `stored_ids`, `claimed_shards`, `is_known`.
_PARTICIPLES = """
    accepted added agreed allowed announced answered asked begun bound brought built called changed checked
    chosen claimed collected compared counted decided demanded described done explained fetched
    finished followed forgotten found given gone got handed heard held ignored joined judged kept known learnt
    left listed made meant merged moved named needed noted noticed offered owned parsed passed permitted picked placed
    promised proven queued raised ranked reached refused rejected remembered repeated reported said seen selected
    sent served settled shown skipped sorted_ spoken spread stated stored submitted taken tested thrown told tried
    understood used wanted warned watched written
"""
PARTICIPLES: Final = frozenset(_PARTICIPLES.split())
# In tests, `expected` and `stored` stand beside each other in a comparison and are clear; these are not.
FEW_PARTICIPLES: Final = frozenset(("said", "told", "known", "held", "heard", "meant", "asked", "spoken", "stated"))
# A class that is called so says nothing about what it is.
BARE_CLASS: Final = re.compile(r"_?[A-Z][a-z]+(?:ed|ing)")
NOUNS_IN_ING: Final = frozenset(("Finding", "Listing", "String", "Thing", "Warning", "Setting", "Reading", "Binding"))
REPLACED: Final[Mapping[str, str]] = {
    "Listening": "RecordingPolicy",
    "Direct": "FastPath",
    "Shelf": "VocabularyStore",
    "Hands": "ConcurrentCalls",
    "Paper": "PipeConsole",
    "excuse": "release_uncounted",
    "prove": "reset_attempts",
}
_VERBS = """
    abandon accept acknowledge acquire add admit adopt advance align allow announce answer append apply ask assemble
    assert assign assume authenticate authorise await begin bind block bound break bring build cache call cancel
    change check choose claim clean clear close collect combine compare compile complete compose compress compute
    confirm connect consume continue convert copy correct count create cut deal decide declare decode decompress
    delete deliver demote deny derive describe detect discard dispatch divide do download draw drive drop dump edit
    empty enable encode end enforce ensure enter erase escape establish estimate evaluate examine execute exit
    expand expect expire explain export express extend extract fail fall fetch fill filter find finish fit flatten
    flush fold follow forget form format forward gather generate get give go grant group guard guess halve hand
    handle hash hide hold identify ignore import increase index infer inflate inform initialise insert inspect
    install interrupt introduce invalidate invent issue iterate join judge keep kill lay leave lend let limit link
    list listen load locate lock log look lower mail make map mark match measure mend merge migrate move mutate name
    normalise note notify observe obtain offer open order pack page pair park parse pass pause perform pick pin
    place plan plant play point poll post prepare present prevent print process produce promote prompt propose prove
    provide publish pull push put query queue quote race raise rank read rebuild receive recognise record recover
    redirect reduce refresh refuse register rehearse reinstate reject release reload remember remove rename render
    renew repair repeat replace replay reply report request require rescue reset resolve respond restart restore
    resume retract retry return reverse revoke rewrite roll round run sample save say scan schedule search seed seek
    select send separate sequence serve set settle share shift show shrink shut sign simplify simulate skip sleep
    sort spell splice split spoil spread stamp start state stop store stream strip submit substitute subtract
    suggest sum summarise supersede supervise suspend swap sweep switch synchronise take talk tell terminate test
    throttle tie time touch trace track transform translate traverse trim truncate try turn understand undo unlock
    unpack update upgrade upload use validate vary verify visit wait wake walk warn watch weigh withdraw work wrap
    write yield
"""
VERBS: Final = frozenset(_VERBS.split())
# "Page of a search" begins with a noun that is a verb too.
AFTER_A_NOUN: Final = frozenset(("of", "is", "are", "was", "were"))
NOT_A_FUNCTIONS_DOCSTRING: Final = frozenset(("property", "cached_property", "fixture", "setter", "overload"))

EXCEPTIONS: Final[Mapping[str, str]] = {
    "src/fedstac/domain/cql2_text.py:left": "the side of an operator, beside right",
    "src/fedstac/db/notifications.py:taken": "a column of the table: when it was taken up first",
    "src/fedstac/db/requests.py:finished": "a column of the table: when it became final",
    "src/fedstac/domain/validation.py:excuse": "a rule of the domain: errors that the stored version had are excused",
    "src/fedstac/client/transport.py:NotFound": "an exception of the client, which programs catch by this name",
    "src/fedstac/domain/errors.py:NotFound": "as above: two sides of one answer",
    "src/fedstac/client/transport.py:Conflict": "as above",
    "src/fedstac/domain/errors.py:Conflict": "as above",
    "src/fedstac/bootstrap.py:queued": "a Wakeup is called by the news that it brings",
    "src/fedstac/bootstrap.py:settled": "a Wakeup is called by the news that it brings",
    "src/fedstac/runtime/supervision.py:changed": "a Wakeup is called by the news that it brings",
    "src/fedstac/cli/__init__.py:everywhere": "its docstring is the text of `fedstac --help`",
    "src/fedstac/client/publishing.py:Publishing": "a noun here: one run of publishing",
    "src/fedstac/client/values.py:changed": "a member of the server's answer has this name",
    "src/fedstac/vocabularies/compare.py:added": "beside `removed`: the two sides of a difference",
    "src/fedstac/vocabularies/compare.py:changed": "beside `added` and `removed`",
}


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A name or docstring to mend; `key` is what EXCEPTIONS calls it."""

    path: str
    line: int
    message: str
    key: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a name is defined."""

    path: str
    line: int

    @property
    def module(self) -> str:
        """The dotted name of the module."""
        return self.path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@dataclass(slots=True)
class Package:
    """What all files together define and import: needed to see names that stand for two things."""

    classes: dict[str, list[Place]] = field(default_factory=lambda: defaultdict(list))
    functions: dict[str, list[Place]] = field(default_factory=lambda: defaultdict(list))
    bases: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # of each class, by name
    bare_classes: list[tuple[str, Place]] = field(default_factory=list)
    bare_imports: set[tuple[str, str]] = field(default_factory=set)  # (module, name) of `from module import name`

    def read_classes(self, path: str, tree: ast.Module) -> None:
        """Note the classes that are named by what happened, and what each class is derived from."""
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self.bases[node.name] |= {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                if BARE_CLASS.fullmatch(node.name) and node.name.lstrip("_") not in NOUNS_IN_ING:
                    self.bare_classes.append((node.name, Place(path, node.lineno)))

    def is_exception(self, name: str) -> bool:
        """Return whether a class is an exception. What is raised may say what happened: `Misconfigured`."""
        return name.endswith(("Exception", "Error")) or any(map(self.is_exception, self.bases.get(name, ())))

    def read(self, path: str, tree: ast.Module) -> None:
        """Note the public classes and functions of a module, and what it imports by name."""
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
                self.classes[statement.name].append(Place(path, statement.lineno))
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and not statement.name.startswith("_"):
                self.functions[statement.name].append(Place(path, statement.lineno))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                self.bare_imports |= {(node.module, alias.name) for alias in node.names}

    def findings(self) -> Iterator[Finding]:
        """Yield the classes named by what happened, and the names that stand for two things.

        A function that is called as `module.function` stands for one thing.
        """
        for name, place in self.bare_classes:
            if not self.is_exception(name):
                message = f"the class `{name}` says what happened to a thing; name what it is"
                yield Finding(place.path, place.line, message, name)
        bare_functions = {
            name: [place for place in places if (place.module, name) in self.bare_imports]
            for name, places in self.functions.items()
        }
        for kind, names in (("class", self.classes), ("function", bare_functions)):
            for name, places in names.items():
                for place in places if len(places) > 1 else ():
                    others = ", ".join(other.path for other in places if other is not place)
                    message = f"the {kind} `{name}` stands for another thing in {others}"
                    yield Finding(place.path, place.line, message, name)


def findings_in(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Yield the findings of one module that need no other."""
    bindings = list(_bindings(tree))
    names = {binding.name for binding in bindings}
    participles = FEW_PARTICIPLES if path.startswith("tests/") else PARTICIPLES
    for line, name, is_flag in bindings:
        plain = name.strip("_")
        is_side = plain == "left" and "right" in names
        if plain in participles and not is_side and not is_flag:
            yield Finding(path, line, f"`{name}` says what happened to a thing; name what it is", name)
        if plain in REPLACED:
            yield Finding(path, line, f"`{name}` is called `{REPLACED[plain]}` now", name)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            tuple_faults = () if path.startswith("tests/") else _tuple_faults(node)
            for message in (*_docstring_faults(node), *tuple_faults):
                yield Finding(path, node.lineno, message, node.name)


class Binding(NamedTuple):
    """A name that a module gives to something."""

    line: int
    name: str
    is_flag: bool = False  # true or false: `retracted: bool` says a state, as a predicate does


def _bindings(tree: ast.Module) -> Iterator[Binding]:
    """Yield each name that a module gives to something."""
    flags = _flags(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield Binding(
                    node.lineno, name, id(node) in flags or _is_flag_or_count(getattr(node, "annotation", None))
                )
            case ast.Attribute(attr=name, value=ast.Name(id="self"), ctx=ast.Store()):
                yield Binding(node.lineno, name, id(node) in flags)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield Binding(node.lineno, name, _is_flag_or_count(node.returns))
            case ast.ClassDef(name=name) | ast.MatchAs(name=str(name)) | ast.ExceptHandler(name=str(name)):
                yield Binding(node.lineno, name)


def _flags(tree: ast.Module) -> set[int]:
    """Return the ids of the nodes that are bound to true or false."""
    flags = set()
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(target=target, annotation=annotation) if _is_flag_or_count(annotation):
                flags.add(id(target))
            case ast.Assign(targets=targets, value=value) if _is_predicate(value):
                flags |= {id(target) for target in targets}
    return flags


def _is_flag_or_count(annotation: ast.expr | None) -> bool:
    """Return whether an annotation is that of a flag or a count: `rejected: int` counts what is rejected."""
    return annotation is not None and ast.unparse(annotation) in ("bool", "bool | None", "int")


def _is_predicate(value: ast.expr) -> bool:
    """Return whether an expression is true or false by its form."""
    match value:
        case ast.Compare() | ast.UnaryOp(op=ast.Not()) | ast.Constant(value=bool()):
            return True
        case ast.BoolOp(values=values):
            return all(map(_is_predicate, values))
    return False


def _docstring_faults(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield a message if a docstring does not start with a verb.

    A property or a fixture is described as a thing, and a test by its situation: its name says what it shows.
    """
    text = ast.get_docstring(node)
    decorators = {ast.unparse(each).partition("(")[0].rpartition(".")[2] for each in node.decorator_list}
    if not text or decorators & NOT_A_FUNCTIONS_DOCSTRING or node.name.startswith("test_"):
        return
    first, second = (*re.findall(r"[^\s,.:;]+", text.split("\n", 1)[0])[:2], "", "")[:2]
    if first.lower() not in VERBS or second.lower() in AFTER_A_NOUN:
        yield f"the docstring of `{node.name}` starts with {first!r}; start with a verb: Return, Store, Refuse"


def _tuple_faults(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield a message if a function returns a tuple of three or more different things."""
    match node.returns:
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=members)) if len(members) > 2:
            yield f"`{node.name}` returns a tuple of {len(members)}; make it a record with names"


def _files(paths: Iterable[Path]) -> list[Path]:
    """Return the Python files among the paths, and in those that are folders."""
    return sorted(
        {file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]) if file.suffix == ".py"}
    )


def main() -> int:
    """Print the findings in what the command line names, or in all of PLACES."""
    everything = [ROOT / place for place in PLACES]
    wanted_paths = [Path(name).resolve() for name in sys.argv[1:]] or everything
    shown_paths = {str(file.relative_to(ROOT)) for file in _files(wanted_paths)}
    package, findings = Package(), list[Finding]()
    for file in _files({*everything, *wanted_paths}):
        path, tree = str(file.relative_to(ROOT)), ast.parse(file.read_text())
        package.read_classes(path, tree)
        if path.startswith("src/"):
            package.read(path, tree)
        findings += findings_in(path, tree)
    findings += package.findings()
    unused = sorted(set(EXCEPTIONS) - {f"{each.path}:{each.key}" for each in findings})
    findings = [each for each in findings if f"{each.path}:{each.key}" not in EXCEPTIONS]
    lines = [str(each) for each in sorted(set(findings)) if each.path in shown_paths]
    lines += [f"tools/prose.py: the exception {key} is not needed any more" for key in unused]
    print("\n".join([*lines, f"prose: {len(lines)} findings"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
