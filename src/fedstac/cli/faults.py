"""What a command raises, as one sentence on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from fedstac import settings as environment
from fedstac.cli import terminal
from fedstac.cli.terminal import Output, complain, say
from fedstac.client import documents
from fedstac.client.transport import ClientError, Refused

PROCESSES = ("serve", "index-node", "worker", "sequencer", "notifier", "identity-provider", "demo")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)  # a file or a disk, and no database


class Commands(TyperGroup):
    """All commands: what they raise becomes one sentence and an exit code; FEDSTAC_DEBUG=1 shows the traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Users first."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: getattr(self.commands[name], "rich_help_panel", "") != "Client")

    def invoke(self, ctx: Any) -> Any:
        terminal.use_form(form_in(sys.argv))
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(terminal.INTERRUPTED) from None
        except typer.Abort:  # Ctrl-C, or the end of the input, instead of an answer to a question
            say("\nstopped")
            raise typer.Exit(terminal.INTERRUPTED) from None
        except typer.Exit:
            raise
        except Exception as error:
            if hasattr(error, "format_message"):  # wrong usage, which typer shows itself, in a frame
                if form_in(sys.argv) is Output.TABLE:
                    raise
                complain(error.format_message(), terminal.USAGE)
                raise typer.Exit(terminal.USAGE) from None
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # `| head` has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(terminal.NO_READER) from None
            if _is_debugged():
                raise
            sentence, code = _explain(error)
            if ctx.invoked_subcommand in PROCESSES and code != terminal.FAULT:  # it could not start
                code = terminal.AWAY
            complain(error if isinstance(error, Refused) else sentence, code)
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


def _explain(error: Exception) -> tuple[str, int]:
    """One sentence that names the thing and the remedy, and the exit code."""
    if isinstance(error, ClientError | documents.Unreadable):
        return str(error), terminal.exit_code(error)
    if isinstance(error, ModuleNotFoundError):
        return (
            f"there is no module {error.name}; the server's parts come with: pip install 'fedstac[server]'",
            terminal.USAGE,
        )
    match type(error).__name__:  # those of the server's parts, which may not be installed
        case "ValidationError":
            return "; ".join(_faults(error)), terminal.USAGE
        case "SettingsError":  # "error parsing value for field …"
            named = re.search(r'field "(\w+)"', str(error))
            variable = f"FEDSTAC_{named[1].upper()}" if named else "a setting"
            return (
                f"{variable} is not JSON, as it has to be; docs/reference/settings.md has its form",
                terminal.USAGE,
            )
        case "WrongNode" | "DatabaseUnusable" | "CannotListen" | "MigrationRefused":
            return str(error), terminal.AWAY
        case "FollowedElsewhere" | "Misconfigured" | "PolicyBroken" | "SourcesUnclear" | "VocabularyBroken":
            return str(error), terminal.USAGE
        case "PartGaveUp":
            return f"{error}; see the log for its reason", terminal.FAULT
        case "BehindRetention":
            return "the source's feed has lost its beginning: use --from snapshot", terminal.NOT_FOUND
        case "SourceRefused":
            return f"{error}; see to FEDSTAC_SOURCE_TOKEN", terminal.NOT_AUTHORISED
        case "NotServed":
            return f"{error}; is FEDSTAC_SOURCE the address of a publishing node?", terminal.NOT_FOUND
        case "SourceAway":
            return str(error), terminal.AWAY
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"the results cannot be written: {error.strerror}", terminal.USAGE
    if type(error).__module__.startswith(("asyncpg", "psycopg")) and (sentence := _of_database(error)):
        return sentence, terminal.AWAY
    if isinstance(error, OSError) or type(error).__module__.startswith("asyncpg"):
        return f"the database or the system refuses: {error}; see to FEDSTAC_DSN", terminal.AWAY
    return f"a fault in fedstac, {type(error).__name__}: {error}; FEDSTAC_DEBUG=1 shows where", terminal.FAULT


def _of_database(error: Exception) -> str | None:
    """What is wrong with the database, where the operator can mend it."""
    from fedstac.db import opening

    return opening.explanation(error, environment.load().dsn)


def _faults(error: Any) -> Iterator[str]:
    """Settings that pydantic refuses, by the names of their variables."""
    for fault in error.errors():
        yield f"FEDSTAC_{'_'.join(map(str, fault['loc'])).upper()}: {fault['msg']}"
