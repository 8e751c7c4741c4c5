"""What the commands write: results to standard output in the form asked for, progress and errors to standard error.

Colours and bars only on a terminal; rich leaves colours out where NO_COLOR is set. While bars are on the screen, every
line for people is printed through their console: what bypasses it is overwritten when the bars move.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from fedstac.cli.wording import in_commands
from fedstac.client.documents import DocumentTrouble, Unreadable
from fedstac.client.publishing import Publishing, Step
from fedstac.client.rehearsal import Foreseen
from fedstac.client.transport import (
    Conflict,
    EnvironmentBroken,
    Invalid,
    LoginFailed,
    NoLogin,
    NotAuthorised,
    NotFound,
    Refusal,
    findings_from,
)
from fedstac.client.values import AcceptedBatch, Request
from fedstac.domain.errors import Finding, Severity

SHOWN_TROUBLES, SHOWN_FINDINGS, SHOWN_CHANGES = 20, 10, 8
REJECTED, USAGE, NOT_FOUND, NOT_AUTHORISED, AWAY, FAULT, INTERRUPTED, NO_READER = 1, 2, 3, 4, 5, 70, 130, 141


class PipeConsole(Console):
    """A console that reports a closed pipe to the whole command, which ends quietly (cli/faults.py)."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "the reader has gone")


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"


@dataclass(slots=True)
class _Screen:
    """What the running command shows: the form of its results, and the console of its bars while there are any.

    `bars_take_results`: standard output is the same terminal as the bars.
    """

    form: Output = Output.TABLE
    bars: Console | None = None
    bars_take_results: bool = False


_screen = _Screen()


def prepare_streams() -> None:
    """Make the standard streams usable in whatever environment a command runs.

    One that is closed leads to nothing, so that no other file gets its number. What goes to files and programs is
    UTF-8; a terminal gets what its encoding has, and escapes for the rest.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            sys.stdout.reconfigure(encoding="utf-8")


def use_form(form: Output) -> None:
    """Set the form in which this command writes its errors too."""
    _screen.form = form


def exit_code(error: Exception) -> int:
    """Return the exit code for what the client raised."""
    match error:
        case NotFound():
            return NOT_FOUND
        case NotAuthorised() | LoginFailed():
            return NOT_AUTHORISED
        case Conflict():
            return REJECTED
        case Invalid() | NoLogin() | Unreadable() | EnvironmentBroken():
            return USAGE
        case _:
            return AWAY


def for_terminal(text: object) -> str:
    """Return text from elsewhere without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\ufffd" for char in str(text))


def say(text: str, style: str = "") -> None:
    """Print a line for people on standard error, never cut or wrapped."""
    console = _screen.bars or PipeConsole(stderr=True, highlight=False)
    console.print(Text(text, style=style), soft_wrap=True)


def show_warnings(warnings: Sequence[str]) -> None:
    """Print what a node warns of, a line each, on standard error."""
    for warning in warnings:
        say(in_commands(for_terminal(f"warning: {warning}")), "yellow")


def complain(error: Exception | str, code: int | None = None) -> None:
    """Print an error on standard error: a red line, or a line of JSON where the results are JSON.

    `code`: the exit code that follows, if the command ends with this error.
    """
    if _screen.form is Output.TABLE:
        say(f"fedstac: {in_commands(for_terminal(error))}", "red")
    else:
        sys.stderr.write(json_text({"error": _as_json(error, code)}) + "\n")
        sys.stderr.flush()


def _as_json(error: Exception | str, code: int | None) -> dict[str, Any]:
    members: dict[str, Any] = {"detail": str(error)}
    if isinstance(error, Refusal):
        members |= {"type": error.type, "status": error.status}
        members |= {"errors": [finding.as_json() for finding in error.findings]} if error.findings else {}
    return members if code is None else members | {"exit_code": code}


def out(line: str = "", style: str = "") -> None:
    """Print a line of a result for people on standard output, never cut or wrapped."""
    console = _screen.bars if _screen.bars_take_results else None
    (console or PipeConsole(highlight=False)).print(Text(line, style=style), soft_wrap=True)


def number(count: int, what: str) -> str:
    """Return a count with its noun: `1 item`, `2 items`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def dump(value: object) -> None:
    """Write a value as JSON and a line break."""
    sys.stdout.write(json_text(value) + "\n")
    sys.stdout.flush()


def json_text(value: object) -> str:
    """Return a value as JSON on one line. A name of a file that is no text has question marks."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()


def show_with_event(form: Output, document: Mapping[str, object], event: str) -> None:
    """Show what is known of an event, and the event itself, a JSON text."""
    content = orjson.loads(event)
    if form is not Output.TABLE:
        dump({**document, "event": content})
        return
    for name, value in document.items():
        if value is not None:
            out(for_terminal(f"{name:<12} {value}"))
    for line in orjson.dumps(content, option=orjson.OPT_INDENT_2).decode().splitlines():
        out(for_terminal(line))


def moment(created: str) -> str:
    """Return a moment of RFC 3339 as a column of a table has it: month, day and minute."""
    return created[5:16].replace("T", " ")


class Listing:
    """Rows as they come: a table, an array in `opening` and `closing`, or a line each.

    `if_empty`: what a table says on standard error if it has no row.
    """

    def __init__(
        self, form: Output, columns: Sequence[str], *, opening: str = "[", closing: str = "]", if_empty: str = "none"
    ) -> None:
        self._form, self._columns, self._if_empty = form, columns, if_empty if columns else ""
        self._opening, self._closing = opening, closing
        self._widths = [len(name) for name in columns]
        self.count = 0

    def row(self, value: Mapping[str, Any], cells: Sequence[object]) -> None:
        """Show a row: `value` in JSON, `cells` in a table."""
        match self._form:
            case Output.NDJSON:
                dump(value)
            case Output.JSON:
                sys.stdout.write((self._opening if not self.count else ",\n") + json_text(value))
            case Output.TABLE:
                texts = [for_terminal("" if cell is None else cell) for cell in cells]
                self._widths = [max(*pair) for pair in zip(self._widths, map(len, texts), strict=True)]
                if not self.count:
                    out(self._line(self._columns), "bold")
                out(self._line(texts))
        self.count += 1

    def _line(self, texts: Sequence[str]) -> str:
        return "  ".join(text.ljust(width) for text, width in zip(texts, self._widths, strict=True)).rstrip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._form is Output.JSON and (self.count or kind is None):
            sys.stdout.write(("" if self.count else self._opening) + self._closing + "\n")
            sys.stdout.flush()
        elif self._form is Output.TABLE and self._if_empty and not self.count and kind is None:
            say(self._if_empty, "dim")


def sign_of(finding: Finding) -> str:
    """Return what stands before a finding, so that a warning is not taken for the reason of a refusal."""
    return "warning " if finding.severity is Severity.WARNING else ""


def finding_line(finding: Finding) -> str:
    near = finding.suggestion if finding.suggestion and finding.suggestion not in finding.message else ""
    suggestion = f" (suggestion: {near})" if near else ""
    return in_commands(for_terminal(f"{finding.pointer or '/'}: {finding.message}{suggestion}"))


def show_trouble(place: str, id: str, status: str, type: str, detail: str, findings: Sequence[Finding]) -> None:
    """Show an item that is not published, for people."""
    out(for_terminal(f"{status}: {'  '.join(part for part in (place, id) if part)}"), "red")
    is_repeated = bool(findings) and findings[0].message in detail
    out(in_commands(for_terminal(f"  {type}" + ("" if is_repeated else f": {detail}"))))
    for finding in sorted(findings, key=sign_of)[:SHOWN_FINDINGS]:  # errors first
        out(f"    {sign_of(finding)}{finding_line(finding)}")
    if len(findings) > SHOWN_FINDINGS:
        out(f"    and {len(findings) - SHOWN_FINDINGS} more findings; -o ndjson shows all")


def show_notices(properties: Mapping[str, Any]) -> None:
    """Show why a dataset is retracted or under quarantine, and what to use instead, for people; nothing of others."""
    if properties.get("fedstac:state") == "quarantined":
        notice = properties.get("fedstac:quarantine") or {}
        contact = f"; ask {notice['contact']}" if notice.get("contact") else ""
        out(for_terminal(f"    under quarantine: {notice.get('reason') or 'somebody looks into it'}{contact}"), "red")
    if properties.get("fedstac:state") != "retracted" and not properties.get("fedstac:retraction"):
        return
    retraction = properties.get("fedstac:retraction") or {}
    out(for_terminal(f"    retracted: {retraction.get('reason') or 'no reason was given'}"), "red")
    if retraction.get("replaced_by"):
        out(for_terminal(f"    use instead: {retraction['replaced_by']}"))
    if retraction.get("errata"):
        out(for_terminal(f"    see: {retraction['errata']}"))


def show_request(request: Request) -> None:
    """Show a request, for people: what was done, what was refused, where it is visible."""
    counts = ", ".join(f"{name} {count}" for name, count in request.counts.items() if count)
    outcomes = ", ".join(f"{name} {count}" for name, count in request.outcomes.items())
    out(f"{for_terminal(request.id)}  {for_terminal(request.shown_status)}", "bold")
    total = number(request.total, "item")
    out(for_terminal(f"  {request.collection}: {total}; {counts}" + (f" ({outcomes})" if outcomes else "")))
    for node, since in request.visible.items():
        out(for_terminal(f"  {node}: " + (f"visible since {since}" if since else "not visible yet")))
    if request.unchanged:
        out("  nothing was changed by it")
    for entry in request.document.get("problems", ()):
        place, findings = f"item {entry['n']}", findings_from(entry.get("findings"))
        status = "cancelled" if entry.get("type") == "cancelled" else entry["status"]
        show_trouble(place, entry["id"], status, entry.get("type", ""), entry.get("detail", ""), findings)


class _Count(ProgressColumn):
    """How many are done, and of how many where that is known."""

    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f"/{task.total:.0f}"
        return Text(f"{task.completed:.0f}{total}", style="progress.download")


@contextmanager
def bars(names: Sequence[str], form: Output = Output.TABLE, *, in_bytes: bool = False) -> Iterator[Bars]:
    """Show bars on standard error while the block runs, if that is a terminal; bars in bytes with rate and time left.

    `say` prints above them, and `out` too where standard output is the same terminal. Results for programs keep to
    standard output; where that is the same terminal there are no bars.
    """
    console, shared = PipeConsole(stderr=True, highlight=False), sys.stdout.isatty()
    is_shown = console.is_terminal and not (shared and form is not Output.TABLE)
    columns: tuple[ProgressColumn, ...] = (_Count(), TimeElapsedColumn())
    if in_bytes:
        columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=30), *columns,
        console=console, disable=not is_shown, transient=True, redirect_stdout=shared,
    )  # fmt: skip
    with progress:
        if is_shown:
            _screen.bars, _screen.bars_take_results = console, shared
        tasks = {name: progress.add_task(name, total=None, visible=name == names[0]) for name in names}
        try:
            yield Bars(progress, tasks)
        finally:
            _screen.bars, _screen.bars_take_results = None, False


class Bars:
    """Bars by name. Each but the first comes when something is known of it."""

    def __init__(self, progress: Progress, tasks: Mapping[str, TaskID]) -> None:
        self._progress, self._tasks = progress, tasks

    def set(self, name: str, count: int, total: int | None) -> None:
        """Move a bar; `total` is None while it is not known."""
        self._progress.update(self._tasks[name], completed=count, total=total, visible=True)


class PublishReport:
    """Shows a run of `fedstac publish` while it goes on, and at its end."""

    def __init__(self, run: Publishing, form: Output, *, wait: bool) -> None:
        self._run, self._form, self._wait = run, form, wait
        self._requests: list[dict[str, Any]] = []
        self._troubles: list[dict[str, Any]] = []
        self._foreseen: list[dict[str, Any]] = []
        self._shown_troubles = 0

    @property
    def bar_names(self) -> list[str]:
        following = ["published", *(f"visible at {node}" for node in self._run.visible)] if self._wait else []
        return ["sent", "accepted", *following, "rejected"]

    def update(self, shown_bars: Bars) -> None:
        counts = self._run.counts
        refusals = counts["rejected"] + counts["failed"]
        shown_bars.set("sent", counts["sent"], max(counts["read"], counts["sent"]))
        shown_bars.set("accepted", counts["accepted"], counts["sent"])
        if self._wait:
            shown_bars.set("published", counts["done"], counts["accepted"])
            for node, count in self._run.visible.items():
                shown_bars.set(f"visible at {node}", count, counts["done"])
        if refusals:
            shown_bars.set("rejected", refusals, counts["read"])

    def step(self, step: Step) -> None:
        match step:
            case AcceptedBatch():
                row = {"request": step.id, "url": step.url, "total": step.total, "rejected": step.rejected}
                self._emit("accepted", row, self._requests)
                if self._form is Output.TABLE and not self._wait:
                    out(f"accepted  {step.id}  {number(step.total, 'item')}")
            case DocumentTrouble():
                self._emit(step.status, step.as_json(), self._troubles)
                if self._form is Output.TABLE and self._shown_troubles < SHOWN_TROUBLES:
                    show_trouble(step.place, step.id, step.status, step.type, step.detail, step.findings)
                    self._shown_troubles += 1
            case Request():
                if self._form is Output.TABLE and step.is_final and step.warned:
                    say(f"{number(step.warned, 'item')} with warnings: fedstac status {step.id} --items", "yellow")
                if self._form is Output.NDJSON and step.is_final:
                    dump({"event": "settled", "request": step.id, "status": step.status, "counts": step.counts,
                          "outcomes": step.outcomes, "warned": step.warned, "position": step.position,
                          "visible": step.visible})  # fmt: skip

    def foresee(self, one: Foreseen) -> None:
        """Show what would become of a dataset, before it is sent."""
        self._emit("foreseen", one.as_json(), self._foreseen)
        if self._form is Output.TABLE:
            out(for_terminal(f"{one.forecast.outcome:<9}  {one.forecast.id}"))
            if one.forecast.changed:
                more = len(one.forecast.changed) - SHOWN_CHANGES
                places = ", ".join(one.forecast.changed[:SHOWN_CHANGES]) + (f" and {more} more" if more > 0 else "")
                out(for_terminal(f"    changes {places}"))
            if (last := one.forecast.last_change) is not None and last["action"] != "publish":
                out(
                    for_terminal(f"    undoes or overwrites: {last['action']} by {last['actor']} at {last['at']}"),
                    "yellow",
                )
            for finding in one.forecast.findings:
                out(f"    warning {finding_line(finding)}", "yellow")

    def _emit(self, event: str, row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        if self._form is Output.NDJSON:
            dump({"event": event, **row})
        elif self._form is Output.JSON:
            rows.append(row)

    def end(self, *, interrupted: bool = False) -> None:
        summary = self._summary() | ({"interrupted": True, "open": list(self._run.open)} if interrupted else {})
        match self._form:
            case Output.NDJSON:
                dump({"event": "summary", **summary})
            case Output.JSON:
                forecasts = {"foreseen": self._foreseen} if self._foreseen else {}
                dump({"requests": self._requests, "problems": self._troubles, **forecasts, "summary": summary})
            case Output.TABLE:
                self._end_table(summary)
        if interrupted:
            self._say_what_is_left()

    def end_rehearsal(self, counts: Mapping[str, int]) -> None:
        """Show the end of a run where nothing was sent."""
        match self._form:
            case Output.NDJSON:
                dump({"event": "summary", "dry_run": True, "foreseen": counts})
            case Output.JSON:
                dump({"foreseen": self._foreseen, "problems": self._troubles,
                      "summary": {"dry_run": True, "foreseen": counts}})  # fmt: skip
            case Output.TABLE:
                if counts.get("rejected", 0) > self._shown_troubles:
                    out(f"and {counts['rejected'] - self._shown_troubles} more; -o ndjson shows all of them")
                outcomes = ", ".join(f"{name} {n}" for name, n in counts.items())
                out(f"nothing sent; of {number(sum(counts.values()), 'item')} would be: {outcomes or 'none'}",
                    "yellow" if counts.get("rejected") else "green")  # fmt: skip

    def _summary(self) -> dict[str, Any]:
        run, counts = self._run, self._run.counts
        unchanged, updated = run.outcomes["identical"], run.outcomes["updated"]
        return {
            "read": counts["read"], "sent": counts["sent"], "accepted": counts["accepted"],
            "published": counts["done"] - unchanged, "updated": updated, "unchanged": unchanged,
            "skipped": counts["skipped"], "rejected": counts["rejected"], "failed": counts["failed"],
            "requests": run.requests, "outcomes": dict(run.outcomes), "visible": dict(run.visible),
        }  # fmt: skip

    def _end_table(self, summary: Mapping[str, Any]) -> None:
        refusals = summary["rejected"] + summary["failed"]
        if refusals > self._shown_troubles:
            out(f"and {refusals - self._shown_troubles} more; -o ndjson shows all of them")
        names = ["published", "unchanged"] if self._wait else ["accepted"]
        names += ["skipped", "rejected", "failed"]
        texts = {name: f"{name} {summary[name]}" for name in names if summary[name] or name == names[0]}
        if self._wait and summary["updated"]:
            texts["published"] += f" ({number(summary['updated'], 'update')} of metadata)"
        line = ", ".join(texts.values())
        line += f" of {number(summary['read'], 'item')} in {number(summary['requests'], 'request')}"
        for node, count in self._run.visible.items():
            line += f", {count} visible at {node}"
        out(line, "yellow" if refusals else "green")

    def _say_what_is_left(self) -> None:
        """Say after an interruption how to find what was accepted: nothing of it is lost."""
        run = self._run
        if not run.counts["sent"] and not run.open:
            say("stopped before anything was sent")
            return
        say(f"stopped after {run.counts['accepted']} of {number(run.counts['sent'], 'item')} sent were accepted in "
            f"{number(run.requests, 'request')}; what is accepted will be published")  # fmt: skip
        if not self._wait and run.requests:
            say("the requests are those listed above; follow one with: fedstac status REQUEST --follow")
        for opened in run.open.values():
            say(f"  not settled yet: fedstac status {opened.batch.id} --follow")
        if run.under_way:
            say(f"{number(len(run.under_way), 'item')} from {for_terminal(run.under_way[0].place)} on may have been "
                "accepted; to send them again is harmless")  # fmt: skip
