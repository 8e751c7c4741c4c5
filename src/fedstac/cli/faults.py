"""Turn what a command raises into one sentence on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from typer.core import TyperGroup

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.terminal import Output, complain, say
from fedstac.client import documents
from fedstac.client.transport import ClientError, Refusal
from fedstac.domain.errors import Conflict, NotFound
from fedstac.domain.groups import PolicyBroken
from fedstac.domain.vocabulary import VocabularyBroken

PROCESSES = (
    "serve",
    "index-node",
    "replica-node",
    "worker",
    "sequencer",
    "relay",
    "notifier",
    "identity-provider",
    "file-server",
    "demo",
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)  # of files: no database says so


class Explanation(NamedTuple):
    """What the person at the keyboard reads, and the exit code."""

    sentence: str
    code: int


class Commands(TyperGroup):
    """All commands. An error of one becomes a sentence and an exit code; FEDSTAC_DEBUG=1 shows its traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands: those for clients first."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: getattr(self.commands[name], "rich_help_panel", "") != "Client")

    def invoke(self, ctx: Any) -> Any:
        terminal.use_form(form_in(sys.argv))
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()  # a full disk is noticed here, and not when nobody can say so any more
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(terminal.INTERRUPTED) from None
        except typer.Abort:  # Ctrl-C, or the end of the input, instead of an answer to a question
            say("\nstopped")
            raise typer.Exit(terminal.INTERRUPTED) from None
        except typer.Exit:
            raise
        except typer.TyperException as error:  # wrong usage, which typer shows itself, in a frame
            if form_in(sys.argv) is Output.TABLE:
                raise
            complain(error.format_message(), terminal.USAGE)
            raise typer.Exit(terminal.USAGE) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.EPIPE, *NO_ROOM):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest is not tried again
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # `| head` has seen enough
                raise typer.Exit(terminal.NO_READER) from None
            if _is_debugged():
                raise
            sentence, code = explain(error)
            if ctx.invoked_subcommand in PROCESSES and code != terminal.FAULT:  # it could not start
                code = terminal.AWAY
            complain(error if isinstance(error, Refusal) else sentence, code)
            raise typer.Exit(code) from None


def form_in(arguments: Sequence[str]) -> Output:
    """Return the form of results that the arguments ask for, also where the rest of them is wrong."""
    form = Output.TABLE
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        for name in ("--output", "-o"):
            text = value if option == name else option.removeprefix(name).lstrip("=") if option.startswith(name) else ""
            form = Output(text) if text in set(Output) else form
    return form


def _is_debugged() -> bool:
    try:
        return environment.load().debug
    except ValueError:
        return False


def explain(error: Exception) -> Explanation:
    """Return a sentence that names the thing and the remedy, and the exit code."""
    match error:
        case ClientError() | documents.Unreadable():
            return Explanation(str(error), terminal.exit_code(error))
        case ModuleNotFoundError():
            extra = "parquet" if error.name in ("pyarrow", "shapely") else "server"
            sentence = f"there is no module {error.name}; it comes with: pip install 'fedstac[{extra}]'"
            return Explanation(sentence, terminal.USAGE)
        case ValidationError():
            return Explanation("; ".join(_faults_of_settings(error)), terminal.USAGE)
        case SettingsError():
            return Explanation(_not_json(error), terminal.USAGE)
        case environment.Misconfigured() | PolicyBroken() | VocabularyBroken():
            return Explanation(str(error), terminal.USAGE)
        case NotFound():
            return Explanation(error.detail, terminal.NOT_FOUND)
        case Conflict():
            return Explanation(error.detail, terminal.REJECTED)
        case OSError() if error.errno in NO_ROOM:
            place = terminal.for_terminal(error.filename) if error.filename else "the results"
            return Explanation(f"{place} cannot be written: {error.strerror}", terminal.USAGE)
        case UnicodeEncodeError() | orjson.JSONEncodeError() if any(not _is_text(each) for each in sys.argv):
            arguments = ", ".join(terminal.for_terminal(each) for each in sys.argv if not _is_text(each))
            return Explanation(f"{arguments} is not in UTF-8; give ids, names and filters in UTF-8", terminal.USAGE)
    of_server = _explain_server(error)
    if of_server is not None:
        return of_server
    if isinstance(error, OSError) and error.filename is not None:
        return Explanation(f"{terminal.for_terminal(error.filename)}: {error.strerror}", terminal.USAGE)
    if isinstance(error, OSError):
        return Explanation(_refusal_of_system(error), terminal.AWAY)
    sentence = f"a fault in fedstac, {type(error).__name__}: {error}; FEDSTAC_DEBUG=1 shows where"
    return Explanation(sentence, terminal.FAULT)


def _is_text(argument: str) -> bool:
    """Return whether an argument is Unicode, and not bytes of another encoding."""
    return argument.isascii() or not any("\ud800" <= char <= "\udfff" for char in argument)


def _explain_server(error: Exception) -> Explanation | None:
    """Return the explanation of an error of the server's parts; None of another one, or if they are not installed."""
    try:
        from fedstac.bootstrap import WrongNode
        from fedstac.db import opening
        from fedstac.db.migrations import MigrationRefused
        from fedstac.domain.errors import NotFound, Problem
        from fedstac.geoparquet.manifest import SnapshotBroken
        from fedstac.messaging import sinks, sources
        from fedstac.messaging.sources.addresses import SourcesUnclear
        from fedstac.runtime.supervision import PartGaveUp
        from fedstac.workers.following import FollowedElsewhere
        from fedstac.workers.processes import CannotListen
        from fedstac.workers.snapshot_files import OtherOrigin, SnapshotAway, SnapshotBusy
    except ModuleNotFoundError:
        return None
    match error:
        case WrongNode() | opening.DatabaseUnusable() | CannotListen() | MigrationRefused() | sources.SourceAway():
            return Explanation(str(error), terminal.AWAY)
        case SnapshotAway():
            return Explanation(str(error), terminal.AWAY)
        case SnapshotBroken():
            return Explanation(str(error), terminal.REJECTED)
        case FollowedElsewhere() | SourcesUnclear() | SnapshotBusy() | OtherOrigin():
            return Explanation(str(error), terminal.USAGE)
        case PartGaveUp():
            return Explanation(f"{error}; see the log for its reason", terminal.FAULT)
        case sources.BehindRetention():
            return Explanation("the source's feed has lost its beginning: use --from snapshot", terminal.NOT_FOUND)
        case sources.NotServed():
            sentence = f"{error}; is FEDSTAC_SOURCE the address of a publishing node?"
            return Explanation(sentence, terminal.NOT_FOUND)
        case sinks.SinkAway():
            return Explanation(f"the sink does not answer: {error}", terminal.AWAY)
        case sinks.SinkRefused() | sinks.SinkUnclear():
            return Explanation(str(error), terminal.USAGE)
        case NotFound():
            return Explanation(error.detail, terminal.NOT_FOUND)
        case Problem():
            return Explanation(error.detail, terminal.USAGE if error.status == 400 else terminal.REJECTED)
        case sources.SourceRefused():
            return Explanation(f"{error}; see to FEDSTAC_SOURCE_TOKEN", terminal.NOT_AUTHORISED)
        case _ if opening.is_of_driver(error):
            remedy = opening.explanation(error, environment.load().dsn)
            return Explanation(remedy or _refusal_of_system(error), terminal.AWAY)
    return None


def _refusal_of_system(error: Exception) -> str:
    return f"the database or the system refuses: {error}; see to FEDSTAC_DSN"


def _faults_of_settings(error: ValidationError) -> list[str]:
    """Return what pydantic refuses, by the names of the variables."""
    return [f"{environment.variable_of('_'.join(map(str, fault['loc'])))}: {fault['msg']}" for fault in error.errors()]


def _not_json(error: SettingsError) -> str:
    """Return the sentence about a setting that has to be JSON; pydantic says: error parsing value for field …"""
    field = re.search(r'field "(\w+)"', str(error))
    variable = environment.variable_of(field[1]) if field else "a setting"
    return f"{variable} is not JSON, as it has to be; docs/reference/settings.md has its form"
