"""What a doctor finds at a node: findings with their reason and remedy, and the rules that need nothing but numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LEAST_POSTGRESQL: Final = 150000  # server_version_num
EXTENSIONS: Final = ("postgis", "btree_gist", "unaccent")
CLOCK_SECONDS: Final = 2.0  # between this machine and its database
SOURCE_CLOCK_SECONDS: Final = 5.0  # and a source, whose header Date has whole seconds
TRANSACTION_SECONDS: Final = 600.0
WAITING_SECONDS: Final = 60.0
EXPIRY_DAYS: Final = 14.0
LEAST_PARTITIONS: Final = 2
FULL_SHARE, NEARLY_FULL_SHARE = 0.97, 0.9  # of a disk
BUSY_SHARE: Final = 0.8  # of the server's connections
LARGEST_MESSAGE: Final = 8_912_896  # bytes: an event of 8 MiB and its headers


class Grade(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    UNKNOWN = "unknown"  # it cannot be told from here
    WARNING = "warning"  # it works, and will not for ever
    FAULT = "fault"  # something does not work


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding of a check: the thing, what is the matter with it, and what to do."""

    check: str
    verdict: Grade
    thing: str
    why: str = ""
    remedy: str = ""


def fault(check: str, thing: str, why: str, remedy: str) -> Diagnosis:
    """Return that something does not work."""
    return Diagnosis(check, Grade.FAULT, thing, why, remedy)


def warning(check: str, thing: str, why: str, remedy: str) -> Diagnosis:
    """Return that something works and will not for ever."""
    return Diagnosis(check, Grade.WARNING, thing, why, remedy)


def unknown(check: str, thing: str, why: str) -> Diagnosis:
    """Return that something cannot be told from here."""
    return Diagnosis(check, Grade.UNKNOWN, thing, why)


def well(check: str, thing: str) -> Diagnosis:
    """Return that a check found nothing."""
    return Diagnosis(check, Grade.OK, thing)


# --- the database ---


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A transaction that is open for long; `who` names its session, or the prepared transaction."""

    who: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What PostgreSQL says of itself."""

    version: int  # server_version_num
    is_standby: bool
    settings: Mapping[str, str]  # those that this role may see
    extensions: frozenset[str]
    pgstac: str | None
    lacking_roles: Sequence[str]
    connections: int  # of all roles and databases
    clock_ahead_seconds: float  # of the database's clock before this machine's
    transactions: Sequence[OpenTransaction]


def judge_server(facts: ServerFacts, *, pgstac: str, connections_needed: int) -> Iterator[Diagnosis]:
    """Yield what is wrong with a PostgreSQL server and the database's preparation."""
    check, server = "database", "PostgreSQL"
    if facts.version < LEAST_POSTGRESQL:
        yield fault(check, server, f"it is version {facts.version // 10_000}", "update it to 15 or newer")
    if facts.is_standby:
        yield fault(check, server, "it is a standby, which takes no writes", "let FEDSTAC_DSN name the primary")
    for name in EXTENSIONS:
        if name not in facts.extensions:
            yield fault(
                check, f"extension {name}", "it is missing", "fedstac migrate --print-setup | psql -d <database>"
            )
    if facts.pgstac != pgstac:
        state = "it is missing" if facts.pgstac is None else f"it is {facts.pgstac}, this fedstac has {pgstac}"
        yield fault(check, "pgstac", state, "fedstac migrate")
    for name in facts.lacking_roles:
        yield fault(check, f"role {name}", "it is missing", "fedstac migrate --print-setup | psql -d <database>")
    yield from _judge_settings(facts.settings)
    yield from _judge_connections(facts, connections_needed)


def _judge_settings(settings: Mapping[str, str]) -> Iterator[Diagnosis]:
    check = "settings of PostgreSQL"
    for name, loss in {
        "synchronous_commit": "accepted requests are lost when PostgreSQL crashes",
        "fsync": "a crash of the machine can destroy the database",
        "full_page_writes": "a crash of the machine can destroy the database",
    }.items():
        if settings.get(name) == "off":
            yield fault(check, name, f"it is off: {loss}", f"ALTER SYSTEM SET {name} = on, then reload")
    if settings.get("server_encoding", "UTF8") != "UTF8":
        yield fault(check, "server_encoding", f"it is {settings['server_encoding']}", "make the database with UTF8")
    if settings.get("default_transaction_read_only") == "on":
        yield fault(
            check, "default_transaction_read_only", "it is on", "ALTER DATABASE … RESET default_transaction_read_only"
        )
    if settings.get("autovacuum") == "off":
        yield warning(
            check, "autovacuum", "it is off: tables grow and plans become wrong", "ALTER SYSTEM SET autovacuum = on"
        )
    if settings.get("archive_mode") == "off":
        yield warning(
            check, "archive_mode", "it is off: a restore goes back to the last dump", "docs/backup.md, Point in time"
        )
    if settings.get("wal_level") == "minimal":
        yield warning(
            check, "wal_level", "it is minimal: neither archives nor standbys", "ALTER SYSTEM SET wal_level = replica"
        )


def _judge_connections(facts: ServerFacts, needed: int) -> Iterator[Diagnosis]:
    most = int(facts.settings.get("max_connections", 0)) - int(facts.settings.get("superuser_reserved_connections", 0))
    if most <= 0:
        return
    remedy = "raise max_connections, or lower FEDSTAC_POOL_SIZE and the sizes beside it"
    if needed > most:
        yield fault(
            "connections", "max_connections", f"one process takes up to {needed}, the server gives {most}", remedy
        )
    elif facts.connections > BUSY_SHARE * most:
        yield warning("connections", "max_connections", f"{facts.connections} of {most} are taken", remedy)


def judge_transactions(transactions: Sequence[OpenTransaction]) -> Iterator[Diagnosis]:
    """Yield the transactions that are open for too long: nothing is cleaned up behind them."""
    for each in transactions:
        if each.seconds > TRANSACTION_SECONDS:
            yield warning(
                "transactions", each.who, f"its transaction is open for {each.seconds / 60:.0f} min",
                "end its program; a session: SELECT pg_terminate_backend(<pid>); a prepared one: ROLLBACK PREPARED",
            )  # fmt: skip


def judge_clock(thing: str, ahead_seconds: float, most: float) -> Iterator[Diagnosis]:
    """Yield that a clock differs from this machine's by more than it may."""
    if abs(ahead_seconds) > most:
        side = "ahead" if ahead_seconds > 0 else "behind"
        yield warning(
            "clock", thing, f"its clock is {abs(ahead_seconds):.1f} s {side} of this machine's",
            "let chrony or ntpd keep both; tokens and their ends are judged by the clock",
        )  # fmt: skip


def judge_disk(thing: str, total: int, free: int) -> Iterator[Diagnosis]:
    """Yield that a disk is full, or nearly."""
    share = 1 - free / total if total else 0.0
    why, remedy = f"{share:.0%} of it is used, {free / (1 << 30):.1f} GiB are free", "make room, or move the data"
    if share >= FULL_SHARE:
        yield fault("disk", thing, why, remedy)
    elif share >= NEARLY_FULL_SHARE:
        yield warning("disk", thing, why, remedy)


# --- the node's work ---


@dataclass(frozen=True, slots=True)
class LogFacts:
    """How the node's log and its queue stand."""

    has_sequencer: bool
    has_working_claims: bool
    waiting_seconds: float | None  # age of the oldest item that nobody has done
    unsequenced: int
    unsequenced_seconds: float
    partitions_ahead: int


def judge_log(facts: LogFacts) -> Iterator[Diagnosis]:
    """Yield what is wrong with a publishing node's queue and log."""
    if not facts.has_sequencer:
        yield fault(
            "sequencer",
            "the sequencer",
            "none leads: no event gets a position",
            "start fedstac serve, or fedstac sequencer",
        )
    elif facts.unsequenced_seconds > WAITING_SECONDS:
        why = f"it leads, and {facts.unsequenced} events wait for a position since {facts.unsequenced_seconds:.0f} s"
        yield fault("sequencer", "the sequencer", why, "see its log, and end its process: another one takes over")
    if facts.waiting_seconds is not None and facts.waiting_seconds > WAITING_SECONDS and not facts.has_working_claims:
        yield fault(
            "workers", "the queue", f"the oldest item has waited {facts.waiting_seconds:.0f} s, and no worker has it",
            "start fedstac worker, or fedstac serve with FEDSTAC_RUN_WORKERS=true",
        )  # fmt: skip
    if facts.partitions_ahead < LEAST_PARTITIONS:
        yield fault(
            "partitions", "the outbox",
            f"it has {facts.partitions_ahead} partitions ahead; where they end nothing can be published",
            "fedstac migrate makes them; so does the sequencer, whose log says why it did not",
        )  # fmt: skip
