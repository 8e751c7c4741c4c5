"""One change of one dataset or of many: ids, what would be different, confirmation, progress, summary, exit code."""

from __future__ import annotations

import codecs
import difflib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Annotated, Any, BinaryIO

import orjson
import typer

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import client_of, form_of
from fedstac.cli.terminal import Output, out, say, shown
from fedstac.client import Client
from fedstac.client.changes import collection_of as first_part
from fedstac.client.documents import LONGEST_LINE
from fedstac.client.transport import Failed, NotAuthorised, NotFound, Refused
from fedstac.client.values import Changed, Dataset
from fedstac.vocabularies.registry import Vocabularies

HANDS = 8  # changes under way at the same time
SHOWN_DIFFERENCES, SHOWN_IDS = 3, 5
LAST_MOMENT = 15.0  # seconds, after Ctrl-C, for changes that are under way

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Datasets' ids.", show_default=False)]
IdsFrom = Annotated[str, typer.Option("--ids", help="Ids from a file or - for stdin: a line each, or items as NDJSON.")]
Collection = Annotated[str, typer.Option("--collection", "-c", help="If the id does not begin with it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would become of it; change nothing.")]


@dataclass(frozen=True, slots=True)
class One:
    """One dataset of a job; `if_match`: the ETag of what was shown before it was confirmed."""

    client: Client
    id: str
    collection: str
    dry_run: bool
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What is done with each dataset; `foreseen`: its document afterwards, as far as it can be told here.

    `words`: what people read instead of an outcome of the server.
    """

    verb: str
    perform: Callable[[One], Changed]
    foreseen: Callable[[Dataset], Mapping[str, Any]] | None = None
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options that all commands of changes share."""

    ctx: typer.Context
    ids: Sequence[str]
    ids_from: str
    collection: str
    yes: bool
    dry_run: bool
    output: Output | None
    url: str
    token: str


def run(job: Job, wishes: Wishes) -> None:
    """Does it, shows it, and exits: with the code of what failed where all failed alike, else 1 where some did."""
    form, ids = form_of(wishes.ctx, wishes.output), ids_of(wishes)
    with client_of(wishes.ctx, wishes.url, wishes.token) as client:

        def one(id: str) -> One:
            return One(client, id, collection_of(id, wishes.collection, client), wishes.dry_run)

        known = ids if isinstance(ids, list) else []
        seen = _confirm(job, known, one, wishes, form)
        report = _Report(form, job, dry_run=wishes.dry_run)
        with terminal.bars([job.verb], form) as bars, report.listing:
            hands = Hands(lambda id: job.perform(replace(one(id), if_match=seen.get(id))))
            try:
                for id, result in hands.do(iter(ids)):
                    report.add(id, result)
                    bars.set(job.verb, report.count, len(known) or None)
            except BaseException:
                for id, result in hands.finish(LAST_MOMENT):
                    report.add(id, result)
                report.end(hands.under_way)
                raise
    report.end(())
    if report.code:
        raise typer.Exit(report.code)


def ids_of(wishes: Wishes) -> Iterable[str]:
    """Those of the command line, then those of the file: a list, read and judged as a whole; a pipe is read as it
    comes.
    """
    if not wishes.ids and not wishes.ids_from:
        raise typer.BadParameter("say which datasets: ID…, or --ids with a file or - for stdin", param_hint="ID")
    if wishes.ids_from == "-":
        return chain(wishes.ids, _lines(sys.stdin.buffer, "standard input"))
    if not wishes.ids_from:
        return list(wishes.ids)
    try:
        with Path(wishes.ids_from).open("rb") as lines:
            return [*wishes.ids, *_lines(lines, wishes.ids_from)]
    except OSError as error:
        reason = f"{wishes.ids_from} cannot be read: {error.strerror or error}"
        raise typer.BadParameter(reason, param_hint="--ids") from None


def _lines(lines: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), b""), 1):
        text = line.removeprefix(codecs.BOM_UTF8).strip()
        if not text or text.startswith(b"#"):
            continue
        id = _id_on(text)
        if not id:
            reason = f"{name}:{number} is neither an id nor an item with one; write an id a line, or an Item a line"
            raise typer.BadParameter(reason, param_hint="--ids")
        yield id


def _id_on(line: bytes) -> str | None:
    """The id that a line is, bare or in JSON, or that its item has; None where there is none."""
    try:
        said = orjson.loads(line) if line[:1] in (b"{", b'"') else line.decode()
    except ValueError:
        return None
    id = said.get("id") if isinstance(said, dict) else said
    return id if isinstance(id, str) else None


@cache
def vocabularies() -> Vocabularies:
    """The vocabularies that ship with this installation."""
    from fedstac.vocabularies.checker import shipped

    return Vocabularies(shipped(environment.folder("cv")))


def collection_of(id: str, said: str, client: Client) -> str:
    """Where a dataset is: as said, as its id begins by a project's template, else where the server finds it."""
    if said:
        return said
    for project in vocabularies().projects():
        vocabulary = vocabularies().current(project)
        if vocabulary and id.startswith(vocabulary.id_template.literals[0]):
            return project
    found = next(iter(client.search(ids=[id], limit=1)), None)
    return str(found["collection"]) if found else first_part(id)


def link_of(project: str, rel: str) -> dict[str, str]:
    """The type and title that a project wants of its links of a kind."""
    vocabulary = vocabularies().current(project)
    rule = next((rule for rule in vocabulary.links if rule.rel == rel), None) if vocabulary else None
    said = {"type": rule.type, "title": rule.title} if rule else {}
    return {name: value for name, value in said.items() if value}


# --- what would be different ---


def difference(before: Mapping[str, Any], after: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    """A unified diff of two documents, with sorted members; no line where they are the same."""
    one, other = (_text(document).splitlines() for document in (before, after))
    return list(difflib.unified_diff(one, other, *names, lineterm=""))


def _text(document: Mapping[str, Any]) -> str:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()


def style_of(line: str) -> str:
    if line.startswith(("---", "+++")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")


def _confirm(
    job: Job, ids: Sequence[str], one: Callable[[str], One], wishes: Wishes, form: Output
) -> Mapping[str, str | None]:
    """On a terminal: shows what would be different, and asks. A pipe is not asked. ETags of what was shown, by id."""
    asks = sys.stdin.isatty() and sys.stderr.isatty() and not (wishes.yes or wishes.dry_run)
    is_shown = asks or (wishes.dry_run and form is Output.TABLE)
    if not is_shown or not ids:
        return {}
    seen: dict[str, str | None] = {}
    if job.foreseen is not None and len(ids) <= SHOWN_DIFFERENCES:
        seen = {id: _show_difference(job.foreseen, one(id)) for id in ids}
    if not asks:
        return {}
    if len(ids) > 1:
        for id in ids[:SHOWN_IDS]:
            say(f"  {shown(id)}")
        if len(ids) > SHOWN_IDS:
            say(f"  and {len(ids) - SHOWN_IDS} more")
    what = f"{len(ids)} datasets" if len(ids) > 1 else shown(ids[0])
    if not typer.confirm(f"{job.verb} {what}?", err=True):
        say("nothing is changed")
        raise typer.Exit(terminal.REJECTED)
    return seen


def _show_difference(foreseen: Callable[[Dataset], Mapping[str, Any]], one: One) -> str | None:
    """Shows it; the ETag of what is there now."""
    try:
        stored = one.client.get(one.id, collection=one.collection)
    except NotFound:
        return None  # the change itself says so
    for line in difference(stored.document, foreseen(stored), ("now", "then")):
        say(shown(line), style_of(line))
    return stored.etag


# --- many at a time ---

Answer = tuple[str, Changed | Refused]


class Hands:
    """Does something with one thing after the other, a few at a time. What is refused is an answer like others.

    Anything else that is raised ends the work: the server is away, the token is not valid.
    """

    def __init__(self, work: Callable[[str], Changed], count: int = HANDS) -> None:
        self._work, self._count = work, count
        self._todo: Queue[str] = Queue()
        self._done: Queue[tuple[str, Changed | BaseException]] = Queue()
        self._started = 0
        self._open: Counter[str] = Counter()
        self._unknown: list[str] = []

    @property
    def under_way(self) -> list[str]:
        """What was begun and has no answer."""
        return [*self._unknown, *self._open.elements()]

    def do(self, ids: Iterator[str]) -> Iterator[Answer]:
        for id in ids:
            if self._started < self._count:
                Thread(target=self._run, daemon=True).start()
                self._started += 1
            self._open[id] += 1
            self._todo.put(id)
            if self._open.total() >= self._count:
                yield self._next(None)
            while not self._done.empty():
                yield self._next(None)
        while self._open.total():
            yield self._next(None)

    def finish(self, seconds: float) -> Iterator[Answer]:
        """The answers of what was begun, and nothing more, as far as they come in time."""
        while not self._todo.empty():
            self._open[self._todo.get_nowait()] -= 1
        while self._open.total():
            try:
                yield self._next(seconds)
            except Empty:
                return
            except Exception:  # noqa: S112 -- what ended the work is being told already
                continue

    def _next(self, seconds: float | None) -> Answer:
        id, result = self._done.get(timeout=seconds)
        self._open[id] -= 1
        if isinstance(result, BaseException) and not _is_of_one(result):
            self._unknown += [] if isinstance(result, Refused) else [id]
            raise result
        assert isinstance(result, Changed | Refused)
        return id, result

    def _run(self) -> None:
        while True:
            id = self._todo.get()
            try:
                result: Changed | BaseException = self._work(id)
            except BaseException as error:  # raised again where it is taken out
                result = error
            self._done.put((id, result))


def _is_of_one(error: BaseException) -> bool:
    """Whether a refusal is about one dataset; a token that is not known is so for all."""
    return isinstance(error, Refused) and error.status != 401


class _Report:
    """What a command of changes shows."""

    def __init__(self, form: Output, job: Job, *, dry_run: bool) -> None:
        self._form, self._verb, self._words, self._dry_run = form, job.verb, job.words, dry_run
        self.listing = terminal.Listing(form, ())
        self.outcomes: Counter[str] = Counter()
        self._codes: Counter[int] = Counter()

    @property
    def count(self) -> int:
        return self.outcomes.total()

    @property
    def code(self) -> int:
        if len(self._codes) <= 1:
            return next(iter(self._codes), 0)
        return terminal.REJECTED

    def add(self, id: str, result: Changed | Refused) -> None:
        if isinstance(result, Changed):
            outcome = result.outcome or "undecided"
            row = {"id": id, "status": "done", "outcome": outcome, "request": result.request, "dry_run": result.dry_run}
            self._codes[0] += 1
        else:
            outcome = "failed" if isinstance(result, Failed) else "rejected"
            row = {"id": id, "status": outcome, "outcome": outcome, "type": result.type, "detail": result.detail}
            self._codes[_code_of(result)] += 1
        self.outcomes[outcome] += 1
        if self._form is not Output.TABLE:
            found = [finding.as_json() for finding in result.findings]
            self.listing.row({**row, "findings": found}, ())
        elif isinstance(result, Changed):
            said = "unchanged" if outcome == "identical" else self._words.get(outcome, outcome)
            out(shown(f"{'would be ' if self._dry_run else ''}{said}  {id}"))
            for finding in result.findings:
                out(f"    warning {terminal.finding_line(finding)}", "yellow")
        else:
            terminal.show_trouble("", id, outcome, result.type, result.detail, result.findings)

    def _named_outcomes(self) -> list[tuple[str, int]]:
        return [(self._words.get(name, name), n) for name, n in self.outcomes.most_common()]

    def end(self, under_way: Sequence[str]) -> None:
        """A summary of many; of an interruption, what may have been done."""
        if self.count != 1 or under_way:
            counts = ", ".join(f"{name} {n}" for name, n in self._named_outcomes())
            failed = self.outcomes["rejected"] + self.outcomes["failed"]
            say(f"{self._verb}: {terminal.number(self.count, 'dataset')}" + (f": {counts}" if counts else ""),
                "yellow" if failed or under_way else "green")  # fmt: skip
        for id in under_way:
            say(f"  may have been done: {shown(id)}; to say it again is harmless")


def _code_of(refusal: Refused) -> int:
    match refusal:
        case NotFound():
            return terminal.NOT_FOUND
        case NotAuthorised():
            return terminal.NOT_AUTHORISED
        case Failed():
            return terminal.AWAY
    return terminal.REJECTED
