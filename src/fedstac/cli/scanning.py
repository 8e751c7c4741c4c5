"""`fedstac scan`: from NetCDF files to items, offline."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import orjson
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from fedstac import scan as scanning
from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.options import Form, examples, form_of
from fedstac.cli.terminal import Output, complain, for_terminal, say
from fedstac.domain.errors import Severity
from fedstac.domain.vocabulary import Vocabulary, VocabularyBroken
from fedstac.scan import Fault, Scan, Site, site

commands = typer.Typer()
SHOWN = 20


@commands.command(
    rich_help_panel="Client",
    epilog=examples(
        "fedstac scan /data/CMIP6 --site site.toml --out items.ndjson",
        "fedstac scan CMIP6 --root . --node esgf.example.org --base-url https://esgf.example.org/data > items.ndjson",
        "fedstac scan CMIP6.map --site site.toml --trust-checksums -o json 2> summary.json | fedstac validate -",
        codes=True,
    ),
)
def scan(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="DIR|MAPFILE", help="Folder of NetCDF files, or an ESGF mapfile.")],
    site_file: Annotated[
        Path | None, typer.Option("--site", help="What the data node is called, its folders and addresses (TOML).")
    ] = None,
    node: Annotated[str, typer.Option(help="Without --site: the data node's name.")] = "",
    base_url: Annotated[str, typer.Option(help="Without --site: the address that --root has.")] = "",
    root: Annotated[
        Path | None, typer.Option(help="Without --site: folder above the paths in addresses; else DIR.")
    ] = None,
    version: Annotated[
        str, typer.Option("--version", metavar="YYYYMMDD", help="Of files that are in no folder vYYYYMMDD.")
    ] = "",
    ignore_version_folders: Annotated[
        bool,
        typer.Option(
            "--ignore-version-folders",
            help="Folders vYYYYMMDD say no version: --version's, or the mapfile's, is of all.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File for the items, put there when all is done; else stdout.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, max=256, help="Files read at a time; 0: one a processor.")] = 0,
    trust_checksums: Annotated[
        bool, typer.Option("--trust-checksums", help="Take the mapfile's SHA-256, and read headers only.")
    ] = False,
    state: Annotated[Path | None, typer.Option(help="Where what was read is kept; else in the user's folder.")] = None,
    afresh: Annotated[bool, typer.Option("--afresh", help="Read again what was read before.")] = False,
    output: Form = None,
) -> None:
    """Make STAC items of CMIP6 NetCDF files: one line of JSON for each dataset, to publish or validate.

    A file is read once and remembered: stopped or killed, the same command goes on where it was. What is wrong is
    listed at the end, on standard error, with a summary in the form of -o; exit 1 if a file or dataset was left out.
    """
    form = form_of(ctx, output)
    missing = scanning.missing_modules()
    if missing:
        complain(f"to read NetCDF files takes {' and '.join(missing)}: pip install 'fedstac[netcdf]'")
        raise typer.Exit(terminal.USAGE)
    try:
        site_of_files = _site(source, site_file, node=node, base_url=base_url, root=root)
        run = Scan(
            source, site_of_files, state=state or environment.state_folder() / "scan.sqlite", version=version or None,
            vocabulary=_vocabulary(), ignore_folders=ignore_version_folders, jobs=jobs or scanning.processors(),
            trust=trust_checksums, afresh=afresh,
        )  # fmt: skip
        _follow(run, _Report(run, form, has_bar=out is not None or not sys.stdout.isatty()), out)
    except (scanning.NoListing, scanning.SiteBroken, scanning.StateBroken) as error:
        complain(error)
        raise typer.Exit(terminal.USAGE) from None
    if run.counts["errors"]:
        raise typer.Exit(terminal.REJECTED)


def _site(source: str, file: Path | None, *, node: str, base_url: str, root: Path | None) -> Site:
    if file is not None:
        if node or base_url or root:
            raise typer.BadParameter("the site file says it all; leave out --node, --base-url and --root")
        return site.read(file)
    if not (node and base_url):
        raise typer.BadParameter("say where the files will be found: --site FILE, or --node and --base-url")
    if root is None and not os.path.isdir(source):
        raise typer.BadParameter("say below which folder the mapfile's paths become addresses: --root")
    folder = os.path.abspath(root or source)
    protocol = base_url.partition(":")[0]
    return site.site({"node": node, "roots": [{"folder": folder, "urls": {protocol: base_url}}]}, "--node, --base-url")


def _vocabulary() -> Vocabulary | None:
    """Return the newest vocabulary of CMIP6 that is installed; None if there is none: items are made without it too."""
    from fedstac.vocabularies.checker import open_checker

    try:
        return open_checker().vocabularies.current("CMIP6")
    except (VocabularyBroken, OSError):
        return None


def _follow(run: Scan, report: _Report, out: Path | None) -> None:
    """Write items as they are made, to a file in one piece at the end; then show the report."""
    try:
        with _destination(out) as file, report.progress():
            for result in run.run():
                if result is None:
                    report.update()
                elif isinstance(result, Fault):
                    report.add(result)
                else:
                    file.write(orjson.dumps(result) + b"\n")
                    file.flush()
    except KeyboardInterrupt:
        report.end(interrupted=True)
        raise typer.Exit(terminal.INTERRUPTED) from None
    report.end()


@contextmanager
def _destination(out: Path | None) -> Iterator[BinaryIO]:
    """Yield standard output, or a file that is there as a whole or not at all."""
    if out is None:
        yield sys.stdout.buffer
        return
    try:
        unfinished = tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False)  # noqa: SIM115
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot be written: {error.strerror}", param_hint="--out") from None
    try:
        with unfinished as file:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(unfinished.name, 0o666 & ~mask)  # as any new file: temporary ones are their owner's alone
        os.replace(unfinished.name, out)
    except BaseException:
        Path(unfinished.name).unlink(missing_ok=True)
        raise


class _Size(DownloadColumn):
    """Bytes that are read, of how many: nothing while that is not known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Report:
    """What the command shows while it goes on, and at its end; all of it on standard error.

    `has_bar`: false where items go to a terminal, whose lines a bar would overwrite.
    """

    def __init__(self, run: Scan, form: Output, *, has_bar: bool) -> None:
        self._run, self._form = run, form
        self._faults: list[Fault] = []
        self._began = self._read_for = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), _Size(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=console, disable=not (console.is_terminal and has_bar), transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._task = self._bar.add_task("looking for files", total=None)

    @contextmanager
    def progress(self) -> Iterator[None]:
        with self._bar:
            yield

    def update(self) -> None:
        run, counts = self._run, self._run.counts
        self._read_for = time.monotonic()
        finished_files = counts["read"] + counts["remembered"] + counts["unusable"]
        self._bar.update(
            self._task, completed=run.was_read, total=run.to_read or None,
            description=f"{finished_files} of {counts['found']} files",
        )  # fmt: skip

    def add(self, fault: Fault) -> None:
        if self._form is Output.NDJSON:
            self._dump({"event": fault.severity.value, **fault.as_json()})
        elif self._form is Output.JSON or len(self._faults) < SHOWN or fault.severity is Severity.ERROR:
            self._faults.append(fault)

    def end(self, *, interrupted: bool = False) -> None:
        summary = self._summary() | ({"interrupted": True} if interrupted else {})
        match self._form:
            case Output.NDJSON:
                self._dump({"event": "summary", **summary})
            case Output.JSON:
                self._dump({"problems": [fault.as_json() for fault in self._faults], "summary": summary})
            case Output.TABLE:
                self._end_table(summary)
        if interrupted:
            say("stopped; what was read is remembered: say the same again to go on")

    def _summary(self) -> dict[str, Any]:
        run, counts = self._run, self._run.counts
        seconds = max(self._read_for - self._began, 1e-3)
        return {
            "files": counts["found"], "read": counts["read"], "remembered": counts["remembered"],
            "unusable": counts["unusable"], "datasets": counts["datasets"], "kept_back": counts["kept back"],
            "errors": counts["errors"], "warnings": counts["warnings"], "bytes": run.size,
            "bytes_read": run.read_now, "seconds": round(time.monotonic() - self._began, 3),
            "mb_per_s": round(run.read_now / seconds / 1e6, 1),
        }  # fmt: skip

    def _end_table(self, summary: dict[str, Any]) -> None:
        ordered = sorted(self._faults, key=lambda fault: fault.severity is Severity.WARNING)
        for fault in ordered[:SHOWN]:
            style = "red" if fault.severity is Severity.ERROR else "yellow"
            say(for_terminal(f"{fault.severity}: {fault.path}: {fault.message} [{fault.rule}]"), style)
        hidden = summary["errors"] + summary["warnings"] - min(SHOWN, len(ordered))
        if hidden > 0:
            say(f"and {hidden} more; -o ndjson shows all of them")
        rest = [(name, summary[name]) for name in ("remembered", "unusable", "kept_back", "warnings")]
        line = f"{terminal.number(summary['datasets'], 'dataset')} from {terminal.number(summary['files'], 'file')}"
        line += "".join(f", {count} {name.replace('_', ' ')}" for name, count in rest if count)
        line += (
            f"; {summary['bytes_read'] / 1e6:.1f} MB read in {summary['seconds']:.1f} s, {summary['mb_per_s']:g} MB/s"
        )
        say(line, "red" if summary["errors"] else "green")

    @staticmethod
    def _dump(value: object) -> None:
        sys.stderr.buffer.write(orjson.dumps(value) + b"\n")
        sys.stderr.buffer.flush()
