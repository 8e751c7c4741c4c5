"""Change one dataset or many: read ids, show the difference, ask, show progress, sum up, exit with a code."""

from __future__ import annotations

import codecs
import difflib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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
from fedstac.cli.terminal import Output, for_terminal, out, say
from fedstac.client import Client
from fedstac.client.changes import collection_of as first_part
from fedstac.client.documents import LONGEST_LINE
from fedstac.client.transport import Failed, NotAuthorised, NotFound, Refusal
from fedstac.client.values import ChangeResult, Dataset
from fedstac.vocabularies.registry import Vocabularies

CALLS = 8  # changes under way at the same time
SHOWN_DIFFERENCES, SHOWN_IDS = 3, 5
LAST_MOMENT = 15.0  # seconds, after Ctrl-C, for changes that are under way

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Datasets' ids.", show_default=False)]
IdsFrom = Annotated[
    str, typer.Option("--ids", help="Read ids from a file, or - for stdin: one a line, or items as NDJSON.")
]
Collection = Annotated[str, typer.Option("--collection", "-c", help="Collection, if the id does not begin with it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the change.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; change nothing.")]


@dataclass(frozen=True, slots=True)
class One:
    """One dataset of a job. `if_match`: the ETag of the document that was shown before the confirmation."""

    client: Client
    id: str
    collection: str
    dry_run: bool
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """The change of each dataset. `foreseen` computes its document afterwards, as far as that is possible here.

    `words`: what people read instead of the server's names of outcomes. `is_final`: nothing takes it back.
    """

    verb: str
    perform: Callable[[One], ChangeResult]
    foreseen: Callable[[Dataset], Mapping[str, Any]] | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class ChangeOptions:
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


def run(job: Job, options: ChangeOptions) -> None:
    """Change the datasets, show each result, and exit.

    The exit code is that of the failures if all failed alike, and 1 if some failed.
    """
    form, ids = form_of(options.ctx, options.output), ids_of(options)
    with client_of(options.ctx, options.url, options.token) as client:

        def one(id: str) -> One:
            return One(client, id, collection_of(id, options.collection, client), options.dry_run)

        all_ids = ids if isinstance(ids, list) else []
        etags = _confirm(job, all_ids, one, options, form)
        report = _Report(form, job, dry_run=options.dry_run)
        with terminal.bars([job.verb], form) as bars, report.listing:
            calls = ConcurrentCalls(lambda id: job.perform(replace(one(id), if_match=etags.get(id))))
            try:
                for id, result in calls.results(iter(ids)):
                    report.add(id, result)
                    bars.set(job.verb, report.count, len(all_ids) or None)
            except BaseException:
                for id, result in calls.finish(LAST_MOMENT):
                    report.add(id, result)
                if report.count or calls.unanswered:  # else the error says all
                    report.end(calls.unanswered)
                raise
    report.end(())
    if report.code:
        raise typer.Exit(report.code)


def ids_of(options: ChangeOptions) -> Iterable[str]:
    """Return the ids of the command line, then those of the file.

    A file is read and checked as a whole; standard input is read as it comes.
    """
    if not options.ids and not options.ids_from:
        raise typer.BadParameter("say which datasets: ID…, or --ids with a file or - for stdin", param_hint="ID")
    if options.ids_from == "-":
        return chain(options.ids, _lines(sys.stdin.buffer, "standard input"))
    if not options.ids_from:
        return list(options.ids)
    try:
        with Path(options.ids_from).open("rb") as lines:
            return [*options.ids, *_lines(lines, options.ids_from)]
    except OSError as error:
        reason = f"{options.ids_from} cannot be read: {error.strerror or error}"
        raise typer.BadParameter(reason, param_hint="--ids") from None


def _lines(lines: BinaryIO, name: str) -> Iterator[str]:
    """Yield the id of each line that is neither empty nor a comment. BadParameter for a line without one."""
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
    """Return the id on a line: bare, as JSON, or the member of an item. None if there is none."""
    try:
        content = orjson.loads(line) if line[:1] in (b"{", b'"') else line.decode()
    except ValueError:
        return None
    id = content.get("id") if isinstance(content, dict) else content
    return id if isinstance(id, str) else None


@cache
def vocabularies() -> Vocabularies:
    """Return the vocabularies that ship with this installation."""
    from fedstac.vocabularies.checker import shipped

    return Vocabularies(shipped(environment.folder("cv")))


def collection_of(id: str, option: str, client: Client) -> str:
    """Return the collection of a dataset: that of the option, of its id's beginning, or where the server finds it.

    What is under quarantine, marked or deleted is in no search.
    """
    if option:
        return option
    for project in vocabularies().projects():
        vocabulary = vocabularies().current(project)
        if vocabulary and id.startswith(vocabulary.id_template.literals[0]):
            return project
    item: Mapping[str, Any] | None = next(iter(client.search(ids=[id], retracted="include", limit=1)), None)
    with suppress(Refusal):  # the server has no deletion manager, or the caller may see none of it
        item = item or next((each for each in client.statuses([id]) if "collection" in each), None)
        item = item or client.last_deletion(id)
    return str(item["collection"]) if item else first_part(id)


def link_of(project: str, rel: str) -> dict[str, str]:
    """Return the type and title that a project's vocabulary gives to links of a relation."""
    vocabulary = vocabularies().current(project)
    rule = next((rule for rule in vocabulary.links if rule.rel == rel), None) if vocabulary else None
    members = {"type": rule.type, "title": rule.title} if rule else {}
    return {name: value for name, value in members.items() if value}


# --- what would be different ---


def difference(before: Mapping[str, Any], after: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    """Return a unified diff of two documents with their members sorted; no lines if they are the same."""
    one, other = (_text(document).splitlines() for document in (before, after))
    return list(difflib.unified_diff(one, other, *names, lineterm=""))


def _text(document: Mapping[str, Any]) -> str:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()


def style_of(line: str) -> str:
    """Return the colour of a line of a unified diff."""
    if line.startswith(("---", "+++")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")


def _confirm(
    job: Job, ids: Sequence[str], one: Callable[[str], One], options: ChangeOptions, form: Output
) -> Mapping[str, str | None]:
    """Show what would be different and ask, on a terminal only. Return the ETags of the documents shown, by id."""
    if job.is_final:
        if not (options.yes or options.dry_run):
            _confirm_final(job, ids)
        return {}
    asks = sys.stdin.isatty() and sys.stderr.isatty() and not (options.yes or options.dry_run)
    is_shown = asks or (options.dry_run and form is Output.TABLE)
    if not is_shown or not ids:
        return {}
    etags: dict[str, str | None] = {}
    if job.foreseen is not None and len(ids) <= SHOWN_DIFFERENCES:
        etags = {id: _show_difference(job.foreseen, one(id)) for id in ids}
    if not asks:
        return {}
    _show_ids(ids)
    what = f"{len(ids)} datasets" if len(ids) > 1 else for_terminal(ids[0])
    if not typer.confirm(f"{job.verb} {what}?", err=True):
        say("nothing is changed")
        raise typer.Exit(terminal.REJECTED)
    return etags


def _confirm_final(job: Job, ids: Sequence[str]) -> None:
    """Ask for the id before what nothing takes back; for several datasets, how many they are."""
    if not ids or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter(f"{job.verb} cannot be taken back; say --yes where nobody is asked",
                                 param_hint="--yes")  # fmt: skip
    _show_ids(ids)
    what, right_answer = ("the id", ids[0]) if len(ids) == 1 else (f"{len(ids)}, how many they are,", str(len(ids)))
    answer = typer.prompt(f"{job.verb} cannot be taken back; type {what} to go on", default="", show_default=False,
                          err=True)  # fmt: skip
    if answer.strip() != right_answer:
        say("nothing is changed")
        raise typer.Exit(terminal.REJECTED)


def _show_ids(ids: Sequence[str]) -> None:
    """Show which datasets are meant, where they are several."""
    if len(ids) == 1:
        return
    for id in ids[:SHOWN_IDS]:
        say(f"  {for_terminal(id)}")
    if len(ids) > SHOWN_IDS:
        say(f"  and {len(ids) - SHOWN_IDS} more")


def _show_difference(foreseen: Callable[[Dataset], Mapping[str, Any]], one: One) -> str | None:
    """Show what a change would make of a dataset, and return the ETag that it has now; None if there is no dataset."""
    try:
        dataset = one.client.get(one.id, collection=one.collection)
    except NotFound:
        return None  # the change itself reports it
    for line in difference(dataset.document, foreseen(dataset), ("now", "then")):
        say(for_terminal(line), style_of(line))
    return dataset.etag


# --- many at a time ---

Answer = tuple[str, ChangeResult | Refusal]


class ConcurrentCalls:
    """Calls a function with one id after the other, a few at the same time. A refusal is an answer like others.

    Any other error ends the work: the server is away, or the token is not valid. The threads are daemons, and not those
    of a ThreadPoolExecutor: Python waits for an executor's threads when it ends, so that after Ctrl-C a server that
    hangs would hold the command for minutes.
    """

    def __init__(self, call: Callable[[str], ChangeResult], count: int = CALLS) -> None:
        self._call, self._count = call, count
        self._waiting: Queue[str] = Queue()
        self._results: Queue[tuple[str, ChangeResult | BaseException]] = Queue()
        self._threads = 0
        self._open: Counter[str] = Counter()
        self._uncertain: list[str] = []

    @property
    def unanswered(self) -> list[str]:
        """The ids of the calls that began and have no answer."""
        return [*self._uncertain, *self._open.elements()]

    def results(self, ids: Iterator[str]) -> Iterator[Answer]:
        """Yield the answers as they come. The next id is read when a call can begin."""
        for id in ids:
            if self._threads < self._count:
                Thread(target=self._run, daemon=True).start()
                self._threads += 1
            self._open[id] += 1
            self._waiting.put(id)
            if self._open.total() >= self._count:
                yield self._next(None)
            while not self._results.empty():
                yield self._next(None)
        while self._open.total():
            yield self._next(None)

    def finish(self, seconds: float) -> Iterator[Answer]:
        """Begin no more calls, and yield the answers of those that began, as far as they come in time."""
        while not self._waiting.empty():
            self._open[self._waiting.get_nowait()] -= 1
        while self._open.total():
            try:
                yield self._next(seconds)
            except Empty:
                return
            except Exception:  # noqa: S112 -- the error that ended the work is reported already
                continue

    def _next(self, seconds: float | None) -> Answer:
        id, result = self._results.get(timeout=seconds)
        self._open[id] -= 1
        if isinstance(result, BaseException) and not _is_of_one(result):
            self._uncertain += [] if isinstance(result, Refusal) else [id]
            raise result
        assert isinstance(result, ChangeResult | Refusal)
        return id, result

    def _run(self) -> None:
        while True:
            id = self._waiting.get()
            try:
                result: ChangeResult | BaseException = self._call(id)
            except BaseException as error:  # raised again by _next
                result = error
            self._results.put((id, result))


def _is_of_one(error: BaseException) -> bool:
    """Return whether a refusal is about one dataset. An unknown token is unknown for all."""
    return isinstance(error, Refusal) and error.status != 401


class _Report:
    """Shows the result of each change, and a summary."""

    def __init__(self, form: Output, job: Job, *, dry_run: bool) -> None:
        self._form, self._verb, self._words, self._dry_run = form, job.verb, job.words, dry_run
        self.listing = terminal.Listing(form, ())
        self.outcomes: Counter[str] = Counter()
        self._codes: Counter[int] = Counter()

    @property
    def count(self) -> int:
        """The number of changes that have a result."""
        return self.outcomes.total()

    @property
    def code(self) -> int:
        """The exit code of the command."""
        if len(self._codes) <= 1:
            return next(iter(self._codes), 0)
        return terminal.REJECTED

    def add(self, id: str, result: ChangeResult | Refusal) -> None:
        """Show one result and count it."""
        if isinstance(result, ChangeResult):
            outcome = result.outcome or "undecided"
            row = {"id": id, "status": "done", "outcome": outcome, "request": result.request, "dry_run": result.dry_run}
            self._codes[0] += 1
        else:
            outcome = "failed" if isinstance(result, Failed) else "rejected"
            row = {"id": id, "status": outcome, "outcome": outcome, "type": result.type, "detail": result.detail}
            self._codes[_code_of(result)] += 1
        self.outcomes[outcome] += 1
        if self._form is not Output.TABLE:
            findings = [finding.as_json() for finding in result.findings]
            self.listing.row({**row, "findings": findings}, ())
        elif isinstance(result, ChangeResult):
            word = "unchanged" if outcome == "identical" else self._words.get(outcome, outcome)
            out(for_terminal(f"{'would be ' if self._dry_run else ''}{word}  {id}"))
            for finding in result.findings:
                out(f"    warning {terminal.finding_line(finding)}", "yellow")
        else:
            terminal.show_trouble("", id, outcome, result.type, result.detail, result.findings)

    def _outcomes_in_words(self) -> list[tuple[str, int]]:
        return [(self._words.get(name, name), n) for name, n in self.outcomes.most_common()]

    def end(self, unanswered: Sequence[str]) -> None:
        """Sum up many changes; after an interruption, list those that may have been made."""
        if self.count != 1 or unanswered:
            counts = ", ".join(f"{name} {n}" for name, n in self._outcomes_in_words())
            failed = self.outcomes["rejected"] + self.outcomes["failed"]
            say(f"{self._verb}: {terminal.number(self.count, 'dataset')}" + (f": {counts}" if counts else ""),
                "yellow" if failed or unanswered else "green")  # fmt: skip
        for id in unanswered:
            say(f"  may have been done: {for_terminal(id)}; repeating the command is harmless")


def _code_of(refusal: Refusal) -> int:
    """Return the exit code for a refusal."""
    match refusal:
        case NotFound():
            return terminal.NOT_FOUND
        case NotAuthorised():
            return terminal.NOT_AUTHORISED
        case Failed():
            return terminal.AWAY
    return terminal.REJECTED
