"""What an error of the database means: who or what is to blame, and what has to happen next."""

from __future__ import annotations

import errno
import traceback
from enum import Enum, auto

import asyncpg


class Cause(Enum):
    """Why a statement failed, by what has to happen next."""

    AWAY = auto()  # the database is away, or has no room for us: the same work succeeds later
    CONFLICT = auto()  # somebody else's work was in the way: the same work succeeds at once
    REFUSED = auto()  # the database refuses the data itself
    OPERATORS = auto()  # a missing right, a full disk: an operator has to act, and no request is to blame
    SCHEMA = auto()  # an object that does not exist: the operator's or ours (db/schema.py tells which)
    OURS = auto()  # a fault in fedstac


class OperatorsFault(Exception):
    """The database lacks what this node needs; the text says what, and what to do."""


LONGEST_STATEMENT = 2000  # characters
# SQLSTATE, by what they mean; the longest that fits decides
CAUSES = {
    "08": Cause.AWAY,  # connection
    "40": Cause.CONFLICT,  # rollback: serialization, deadlock
    "53": Cause.AWAY,  # resources: memory, connections
    "531": Cause.OPERATORS,  # disk full
    "534": Cause.OPERATORS,  # a limit of the configuration
    "57": Cause.AWAY,  # intervention: shutdown, start
    "57014": Cause.CONFLICT,  # cancelled, by somebody or by a time limit
    "55": Cause.CONFLICT,  # an object is in use, a lock is not to be had
    "55000": Cause.AWAY,  # not in the state for it: the database takes no connections
    "25006": Cause.AWAY,  # read-only: a standby, before it is promoted
    "25P03": Cause.AWAY,  # a session that was ended because it idled
    "22": Cause.REFUSED,  # data exception
    "23": Cause.REFUSED,  # integrity constraint
    "23505": Cause.OURS,  # what is there already: rows are written under locks, so no document brings it about
    "54": Cause.REFUSED,  # program limit
    "42": Cause.SCHEMA,  # undefined table, column, function; syntax
    "3F": Cause.SCHEMA,  # undefined schema
    "42501": Cause.OPERATORS,  # a right is missing
    "28": Cause.OPERATORS,  # the role may not log in
    "3D": Cause.OPERATORS,  # there is no such database
    "58": Cause.OPERATORS,  # input and output, a missing file
    "F0": Cause.OPERATORS,  # the configuration file
    "XX001": Cause.OPERATORS,  # damaged data
    "XX002": Cause.OPERATORS,  # a damaged index
}
# what the driver raises of the database and of the connection to it, beside OSError
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
NO_FAULT_OF_THE_NETWORK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def cause_of(error: BaseException) -> Cause:
    """Return why work with the database failed. What is no error of the database or its driver is OURS."""
    match error:
        case asyncpg.PostgresError():
            return _cause_of_state(error)
        case OperatorsFault():
            return Cause.OPERATORS
        case asyncpg.InternalClientError():
            return Cause.AWAY  # the driver lost the thread, as when its session was ended in the middle of an answer
        case asyncpg.InterfaceError():
            if isinstance(error, ValueError):  # a value that does not fit its parameter
                return Cause.REFUSED
            # closed, taken back by its pool for that, or stuck in what it did when its session was ended
            signs = ("clos", "another operation is in progress", "released back to the pool")
            return Cause.AWAY if any(words in str(error) for words in signs) else Cause.OURS
        case UnicodeEncodeError():
            return Cause.REFUSED  # COPY raises what it cannot encode as it is
        case OSError():  # a file of ours has a name
            ours = error.filename is not None or error.errno in NO_FAULT_OF_THE_NETWORK
            return Cause.OURS if ours else Cause.AWAY
    return Cause.OURS


def _cause_of_state(error: asyncpg.PostgresError) -> Cause:
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return Cause.CONFLICT  # a migration changed a table meanwhile; the driver prepares the statement anew
    if isinstance(error, asyncpg.CheckViolationError) and getattr(error, "table_name", None) == "outbox":
        return Cause.OPERATORS  # nobody made partitions of the outbox ahead
    state = error.sqlstate or ""
    return next((CAUSES[state[:n]] for n in range(5, 1, -1) if state[:n] in CAUSES), Cause.OURS)


def is_transient(error: BaseException) -> bool:
    """Tell whether the same work may succeed when it is tried again soon."""
    return cause_of(error) in (Cause.AWAY, Cause.CONFLICT)


def blames_nobody(error: BaseException) -> bool:
    """Return whether the error is the database's, the network's or the operator's, and not of the work itself."""
    return cause_of(error) in (Cause.AWAY, Cause.CONFLICT, Cause.OPERATORS)


def is_refusal(error: BaseException) -> bool:
    """Tell whether the database refused the data itself."""
    return cause_of(error) is Cause.REFUSED


def statement_of(error: BaseException) -> str | None:
    """Return the statement that failed, for the log. Of a COPY, which the driver does not repeat, the function of ours.

    None where no statement failed.
    """
    if isinstance(error, OperatorsFault) and (cause := error.__cause__ or error.__context__) is not None:
        return statement_of(cause)
    if not isinstance(error, asyncpg.PostgresError):
        return None
    statement: str | None = getattr(error, "query", None)
    return " ".join(statement.split())[:LONGEST_STATEMENT] if statement else _function_of(error)


def _function_of(error: BaseException) -> str | None:
    """Return the function of ours that was running when the error was raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = ((frame.f_globals.get("__name__", ""), frame.f_code.co_name) for frame in reversed(frames))
    return next((f"{module}.{name}" for module, name in modules if module.startswith("fedstac.")), None)


def was_ended_in_order(error: BaseException) -> bool:
    """Return whether PostgreSQL ended the session because somebody asked it to: no statement is to blame.

    The driver raises that the connection is lost, and a transaction that it cannot be rolled back. What PostgreSQL
    said is behind these.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, asyncpg.PostgresError) and (cause.sqlstate or "").startswith("57P"):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
