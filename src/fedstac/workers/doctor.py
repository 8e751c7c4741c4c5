"""`fedstac doctor`: looks at everything that a node stands on, and says what is wrong and what to do.

It changes nothing. A check that cannot be made says so, and the others go on.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from fedstac.client.transport import ClientError
from fedstac.db import connections, diagnosis, health, metrics, migrations, nodes, opening, parts, pools, schema
from fedstac.db.connections import Connection
from fedstac.domain.diagnosis import (
    CLOCK_SECONDS,
    EXPIRY_DAYS,
    SOURCE_CLOCK_SECONDS,
    WAITING_SECONDS,
    Diagnosis,
    LogFacts,
    fault,
    judge_clock,
    judge_disk,
    judge_log,
    judge_server,
    judge_transactions,
    unknown,
    warning,
    well,
)
from fedstac.domain.events import Cursor
from fedstac.domain.groups import PolicyBroken
from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.domain.replication.states import RESTRICTED_TIER
from fedstac.domain.vocabulary import UnknownVersion, VocabularyBroken
from fedstac.identity.issuers import issuers_of
from fedstac.identity.policy_files import Policies
from fedstac.messaging import mail, probing
from fedstac.messaging.origin import Origin
from fedstac.messaging.sources import BehindRetention, NotServed, SourceAway, SourceRefused
from fedstac.messaging.sources.addresses import BrokerAddress, SourceAddress, SourcesUnclear, read_addresses
from fedstac.replication import places, policy_file
from fedstac.settings import Misconfigured, ProcessVariables, Settings, unknown_variables
from fedstac.vocabularies.checker import open_checker
from fedstac.vocabularies.store import VocabularyStore
from fedstac.workers import notifier, replica_identity, roles

ANSWER_SECONDS: Final = 15.0  # for one check
PEER_SECONDS: Final = 12.0  # for one broker, receiver or node, beside the others of a check
NO_RULES: Final = b"version: 1\nrules: []\nsources: []\n"  # in place of a policy that cannot be read
Check = Callable[[Settings], AsyncIterator[Diagnosis]]
DatabaseCheck = Callable[[Settings, Connection], AsyncIterator[Diagnosis]]


async def examine(settings: Settings) -> AsyncIterator[Diagnosis]:
    """Yield what is wrong with a node, check by check; a check that finds nothing says that too."""
    for check in CHECKS:
        async for each in _findings_of(check.__name__, lambda check=check: check(settings)):  # type: ignore[misc]
            yield each
    try:
        with opening.explaining(settings.dsn):
            conn = await connections.connect(settings.dsn, application="fedstac doctor")
    except opening.DatabaseUnusable as error:
        yield fault("database", "PostgreSQL", str(error), "then run fedstac doctor again: more is looked at")
    else:
        try:
            async for each in _of_database(settings, conn):
                yield each
        finally:
            conn.terminate()
    async for each in _findings_of("sources", lambda: sources(settings)):
        yield each


async def _of_database(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    has_tables = True
    async for each in _findings_of("database", lambda: database(settings, conn)):
        has_tables = has_tables and each.check != "migrations"
        yield each
    if not has_tables:
        return  # every other statement would fail
    for check in DATABASE_CHECKS:
        async for each in _findings_of(check.__name__, lambda check=check: check(settings, conn)):  # type: ignore[misc]
            yield each


async def _at_once(
    check: str, looks: Sequence[tuple[str, Callable[[], AsyncIterator[Diagnosis]]]]
) -> AsyncIterator[Diagnosis]:  # fmt: skip
    """Yield the findings about several peers, each with its name. They are asked at once; one may give no answer."""

    async def look(name: str, make: Callable[[], AsyncIterator[Diagnosis]]) -> list[Diagnosis]:
        findings: list[Diagnosis] = []
        try:
            async with asyncio.timeout(PEER_SECONDS):
                async for each in make():
                    findings.append(each)
        except TimeoutError:
            findings.append(unknown(check, name, f"no answer within {PEER_SECONDS:.0f} s"))
        except Exception as error:
            findings.append(unknown(check, name, f"it could not be looked at: {type(error).__name__}: {error}"))
        return findings

    for findings in await asyncio.gather(*(look(name, make) for name, make in looks)):
        for each in findings:
            yield each


async def _findings_of(name: str, check: Callable[[], AsyncIterator[Diagnosis]]) -> AsyncIterator[Diagnosis]:
    """Yield the findings of a check, or that it is well. One that fails by itself is a finding too."""
    name = name.replace("_", " ")
    is_well = True
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            async for each in check():
                is_well = False
                yield each
    except TimeoutError:
        yield unknown(name, name, f"no answer within {ANSWER_SECONDS:.0f} s")
    except Exception as error:
        yield unknown(name, name, f"it could not be looked at: {type(error).__name__}: {error}")
    else:
        if is_well:
            yield well(name, name)


def _is_consumer(settings: Settings) -> bool:
    """Return whether the settings are those of a node that follows others, or a topic."""
    return bool(settings.source or settings.source_feed)


def _is_replica(settings: Settings) -> bool:
    """Return whether the settings are those of a replica node."""
    return bool(settings.replica_folder)


# --- without the database ---


async def variables(settings: Settings) -> AsyncIterator[Diagnosis]:
    """Look at the settings themselves."""
    for variable in unknown_variables():
        nearest = f"did you mean {variable.nearest}?" if variable.nearest else "docs/reference/settings.md has all"
        yield warning("variables", variable.name, "no setting has this name, so it has no effect", nearest)
    if not settings.public_url:
        yield warning(
            "variables", "FEDSTAC_PUBLIC_URL", f"links begin with http://{settings.host}:{settings.port}",
            "set it to the address that clients see",
        )  # fmt: skip
    if ProcessVariables().failpoints:
        yield fault("variables", "FEDSTAC_FAILPOINTS", "faults happen on purpose, for tests", "unset it")
    for problem in _unreadable(settings):
        yield problem
    if not settings.alerts and not (settings.source or settings.source_feed):
        yield warning("variables", "FEDSTAC_ALERTS", "operators are told of nothing", "name a mailbox or a webhook")


def _unreadable(settings: Settings) -> Iterator[Diagnosis]:
    """Yield settings that are wrong, of those with a form of their own."""
    checks: Sequence[tuple[str, Callable[[], object]]] = (
        ("FEDSTAC_ALERTS", lambda: notifier.check(settings)),
        ("FEDSTAC_ISSUERS", lambda: issuers_of(settings.issuers, settings.audience)),
        ("FEDSTAC_POLICY", lambda: Policies(settings.policy, settings.globus_policy, here=settings.node)),
        ("FEDSTAC_SOURCE", lambda: _read_sources(settings)),
        ("FEDSTAC_REPLICA_TOKEN", lambda: replica_identity.token_source(settings) if _is_replica(settings) else None),
    )
    for name, check in checks:
        try:
            check()
        except (Misconfigured, PolicyBroken, SourcesUnclear) as error:
            yield fault("variables", name, str(error), "a node does not start with it; correct it")


def _read_sources(settings: Settings) -> None:
    """Refuse sources that are unclear. A replica node needs no tokens for them: it has an identity."""
    if _is_replica(settings):
        read_addresses(settings.source, settings.source_token or None, feeds=settings.source_feed)
    elif _is_consumer(settings):
        roles.addresses(settings)


async def replica_node(settings: Settings) -> AsyncIterator[Diagnosis]:
    """Look at the policy file of a replica node, and whether it may write to its folders."""
    if not _is_replica(settings):
        return
    for value, variable in (
        (settings.replica_policy, policy_file.SETTING), (settings.replica_url, "FEDSTAC_REPLICA_URL")
    ):  # fmt: skip
        if not value:
            yield fault("replica node", variable, "it is not set, and a replica node needs it", "set it")
    policy = ReplicaPolicy.parse(NO_RULES)
    if settings.replica_policy:
        try:
            policy = policy_file.read(settings.replica_policy)
        except PolicyBroken as broken:
            for each in broken.faults:
                yield fault(
                    "replica node", settings.replica_policy, each,
                    f"mend it; fedstac replica policy check {settings.replica_policy}",
                )  # fmt: skip
    for tier, folder in places.folders_of(settings, policy).items():
        is_made_later = tier == RESTRICTED_TIER and not folder.exists()
        problem = _refusal_of(folder.parent if is_made_later else folder)
        if problem is not None:
            yield fault(
                "replica node", str(folder), problem, "make it or mount it, and let the node's user write there"
            )


def _refusal_of(folder: Path) -> str | None:
    """Return why this process may not write to a folder; None where it may. Nothing is written."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"this user may not write to {folder}"


async def vocabularies(settings: Settings) -> AsyncIterator[Diagnosis]:
    """Look at the vocabularies that ship with fedstac, or those of a folder of one's own."""
    try:
        checker = open_checker(Path(settings.cv_folder) if settings.cv_folder else None, pins=settings.cv_pins)
        for project in checker.vocabularies.projects():
            checker.vocabularies.current(project)
    except VocabularyBroken as error:
        yield fault("vocabularies", settings.cv_folder or "cv", str(error), "fedstac vocab check names each fault")
    except UnknownVersion:
        return  # a version that is in the database, perhaps: pins looks there


async def mail_server(settings: Settings) -> AsyncIterator[Diagnosis]:
    """Look whether somebody answers where mail is handed over."""
    try:
        server = mail.server_of(settings.smtp)
    except Misconfigured:
        return  # variables says it
    if server is not None and (reason := await probing.knock(server.host, server.port)) is not None:
        yield warning("mail server", f"{server.host}:{server.port}", reason, "see to it, or to FEDSTAC_SMTP")


async def identity_providers(settings: Settings) -> AsyncIterator[Diagnosis]:
    """Look whether the identity providers answer."""
    try:
        issuers = issuers_of(settings.issuers, settings.audience)
    except Misconfigured:
        return
    async with httpx.AsyncClient(timeout=probing.CONNECT_SECONDS, trust_env=False) as http:
        for issuer in issuers:
            address = issuer.issuer.rstrip("/") + "/.well-known/openid-configuration"
            try:
                answer = await http.get(address)
                reason = None if answer.is_success else f"{address} answered {answer.status_code}"
            except httpx.HTTPError as error:
                reason = f"{address}: {error or type(error).__name__}"
            if reason is not None:
                yield warning(
                    "identity providers", issuer.issuer, reason, "its keys go on working for a day; see to the provider"
                )


# --- the database ---


async def database(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    """Look at the server, at its settings, and at what the database has of fedstac."""
    facts = await diagnosis.server(conn)
    for each in judge_server(facts, pgstac=migrations.PGSTAC_VERSION, connections_needed=_connections(settings)):
        yield each
    for each in judge_clock("PostgreSQL", facts.clock_ahead_seconds, CLOCK_SECONDS):
        yield each
    for each in judge_transactions(facts.transactions):
        yield each
    soundness = await schema.look(conn)
    if soundness.is_migrating:
        yield warning("migrations", "the database", "it is being migrated", "wait, and look again")
    for defect in soundness.defects:
        yield fault("migrations", "the database", defect, "FEDSTAC_OWNER_DSN=… fedstac migrate")
    for each in _disk(facts.settings.get("data_directory", "")):
        yield each


def _disk(folder: str) -> Iterator[Diagnosis]:
    """Yield that the disk of PostgreSQL's data is full, where that is of this machine and we may know its folder."""
    if folder and Path(folder).is_dir():
        usage = shutil.disk_usage(folder)
        yield from judge_disk(folder, usage.total, usage.free)
    else:
        yield unknown("disk", "PostgreSQL's data", "its folder cannot be seen from here; look at its disk yourself")


def _connections(settings: Settings) -> int:
    """Return how many connections one process with an API may have."""
    readers = settings.reader_pool_size or pools.FOR_READERS
    anonymous = settings.anonymous_pool_size or pools.FOR_READERS
    return settings.pool_size + readers + anonymous + 3  # health, the sequencer or a follower's lock, a relay


async def name(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    """Look whether the database is this node's."""
    origin = await diagnosis.origin(conn)
    if origin is not None and origin != settings.node:
        yield fault(
            "name",
            "FEDSTAC_NODE",
            f"the database is the node {origin!r}, not {settings.node!r}",
            f"set FEDSTAC_NODE={origin}",
        )


async def sequencer_login(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    """Look whether the other roles' connections that the settings name can be opened."""
    for variable in ("sequencer_dsn", "auditor_dsn"):
        dsn = str(getattr(settings, variable))
        if not dsn:
            continue
        try:
            with opening.explaining(dsn):
                other = await connections.connect(dsn, application="fedstac doctor")
                other.terminate()
        except opening.DatabaseUnusable as error:
            place = f"FEDSTAC_{variable.upper()}"
            yield fault("sequencer login", place, str(error).replace("FEDSTAC_DSN", place), f"see to {place}")


async def log_and_queue(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    """Look at the queue, the sequencer and the outbox of a publishing node."""
    if settings.source or settings.source_feed or await diagnosis.origin(conn) is None:
        return  # an index node has none; nor has a node that never started
    figures, standing = await metrics.read(conn), await health.parts(conn)
    outbox = figures.outbox
    facts = LogFacts(
        standing.sequencer, standing.working, standing.waiting_seconds, outbox.unsequenced, outbox.unsequenced_seconds,
        outbox.partitions_ahead,
    )  # fmt: skip
    for each in judge_log(facts):
        yield each


async def background_parts(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    """Look at what the processes of the node report of their parts."""
    for part, report in (await parts.elsewhere(conn, "")).items():
        for trouble in report.troubles:
            yield fault("background parts", part, trouble, "the log of its process says more")
        if report.running < report.wanted and not report.troubles:
            why = f"{report.wanted - report.running} of {report.wanted} do not run"
            yield fault("background parts", part, why, "the log of its process says why")


async def sinks(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    """Look at the sinks: what the relay says of them, whether their brokers answer, and how these are set up."""
    if await diagnosis.origin(conn) is None:
        return
    looks: list[tuple[str, Callable[[], AsyncIterator[Diagnosis]]]] = []
    for sink in (await metrics.read(conn)).sinks:
        place, show = f"sink {sink.name}", f"fedstac sink show {sink.name}"
        if sink.has_lapsed:
            yield fault("sinks", place, "it was behind for too long and has lapsed", f"fedstac sink seek {sink.name} …")
        elif sink.paused_reason:
            yield fault(
                "sinks",
                place,
                f"it is paused: {sink.paused_reason}",
                f"mend that, then fedstac sink resume {sink.name}",
            )
        elif sink.failing_seconds > WAITING_SECONDS:
            yield fault(
                "sinks", place, f"it has been failing for {sink.failing_seconds:.0f} s: {sink.last_error}", show
            )
        elif sink.seconds > WAITING_SECONDS:
            yield warning(
                "sinks",
                place,
                f"it is {sink.events} events and {sink.seconds:.0f} s behind",
                f"{show}; is a relay running?",
            )
        if sink.dead_letters:
            yield warning(
                "sinks", place, f"it refused {sink.dead_letters} events for ever",
                f"fedstac dead-letter list --sink {sink.name}; mend the broker, then fedstac dead-letter redrive",
            )  # fmt: skip
        looks.append((place, partial(_broker, place, sink.address)))
    async for each in _at_once("sinks", looks):
        yield each


async def _broker(place: str, address: str) -> AsyncIterator[Diagnosis]:
    """Look at a broker or the receiver of a webhook."""
    try:
        broker = BrokerAddress.parse(address, options=None)
    except ValueError:
        parts_of_url = urlsplit(address)
        port = parts_of_url.port or (80 if parts_of_url.scheme == "http" else 443)
        reason = await probing.knock(parts_of_url.hostname or "", port)
        if reason is not None:
            yield fault(
                "sinks", place, f"{parts_of_url.hostname}:{port}: {reason}", "see to the receiver, or to the address"
            )
        return
    for defect in await probing.defects(broker):
        make = fault if defect.is_away else warning
        yield make("brokers", place, defect.why, defect.remedy)


async def parked_events(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    """Look at the events that a consumer of this node could not apply."""
    examples = await diagnosis.parked_examples(conn)
    for each in examples:
        yield warning(
            "parked events", f"{each.subject} of {each.origin}", each.detail,
            "a later event of the dataset heals it; fedstac parked list has all",
        )  # fmt: skip


async def tokens(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    """Look for tokens of nodes and monitors that end soon."""
    now = datetime.now(UTC)
    for token in await nodes.tokens(conn):
        if token.expires is None:
            continue
        days = (token.expires - now).total_seconds() / 86_400
        again = f"fedstac token issue {token.name} " + " ".join(f"--role {role}" for role in token.roles)
        if days <= 0:
            yield warning("tokens", f"token {token.name}", "it has ended", f"{again}; fedstac token revoke {token.id}")
        elif days < EXPIRY_DAYS:
            yield warning("tokens", f"token {token.name}", f"it ends in {days:.0f} days", again)


async def pins(settings: Settings, conn: Connection) -> AsyncIterator[Diagnosis]:
    """Look whether the versions of vocabularies that the settings pin are here."""
    checker = open_checker(Path(settings.cv_folder) if settings.cv_folder else None, pins=settings.cv_pins)
    store = VocabularyStore(checker.vocabularies, settings.node)
    await store.look(conn)
    here = set(checker.vocabularies.projects())
    for project in sorted({*here, *settings.cv_pins}):
        try:
            checker.vocabularies.current(project)
        except (UnknownVersion, VocabularyBroken) as error:
            yield fault(
                "pins", f"FEDSTAC_CV_PINS, {project}", str(error), "fedstac vocab list has the versions that are here"
            )
    for collection in await diagnosis.collections(conn):
        if collection not in here:
            yield warning(
                "pins", f"collection {collection}", "no vocabulary judges what is published in it",
                "fedstac vocab install, or leave it so",
            )  # fmt: skip


# --- the sources of a consumer ---


async def sources(settings: Settings) -> AsyncIterator[Diagnosis]:
    """Look whether the nodes that are followed answer, know our token, and still have what we need."""
    if not _is_consumer(settings):
        return
    try:
        addresses = replica_identity.sources_of(settings) if _is_replica(settings) else roles.addresses(settings)
    except (SourcesUnclear, Misconfigured):
        return  # variables says it
    looks: list[tuple[str, Callable[[], AsyncIterator[Diagnosis]]]] = []
    for address in addresses:
        if address.topic_origin is None:  # else there is no node
            looks.append((address.address, partial(_source, settings, address)))
        if address.feed is not None:
            looks.append((str(address.feed), partial(_feed, address.feed)))
    async for each in _at_once("sources", looks):
        yield each


async def _feed(feed: BrokerAddress) -> AsyncIterator[Diagnosis]:
    for defect in await probing.defects(feed):
        yield (fault if defect.is_away else warning)("brokers", str(feed), defect.why, defect.remedy)


async def _source(settings: Settings, address: SourceAddress) -> AsyncIterator[Diagnosis]:
    issue = f"there: fedstac token issue {settings.node} --role node:{settings.node}; here: set FEDSTAC_SOURCE_TOKEN"
    if address.token_source is not None:
        issue = (
            "see to FEDSTAC_REPLICA_ISSUER, _CLIENT_ID and _CLIENT_SECRET, and to FEDSTAC_ISSUERS there"
            if not settings.replica_token
            else issue.replace("FEDSTAC_SOURCE_TOKEN", "FEDSTAC_REPLICA_TOKEN")
        )
    elif not address.token:
        yield fault("sources", address.address, "there is no token for it", issue)
        return
    try:
        async with Origin(address) as origin:
            answer = await origin.send("GET", "/events/head")
            date = answer.headers.get("date")
            if date is not None:
                ahead = parsedate_to_datetime(date).timestamp() - time.time()
                for each in judge_clock(address.address, ahead, SOURCE_CLOCK_SECONDS):
                    yield each
            async for each in _place(settings, address, origin, answer.json()["origin"]):
                yield each
    except SourceAway as error:
        yield fault("sources", address.address, str(error), "start that node, or see to FEDSTAC_SOURCE")
    except NotServed:
        yield fault("sources", address.address, "it has no feed", "let FEDSTAC_SOURCE name a publishing node")
    except SourceRefused as error:
        gives_none = isinstance(error.__cause__, ClientError)  # the identity provider
        yield fault("sources", address.address, str(error) if gives_none else "it does not take our token", issue)


async def _place(
    settings: Settings, address: SourceAddress, origin: Origin, origin_name: str
) -> AsyncIterator[Diagnosis]:
    """Look whether the source's feed reaches back to where we are."""
    try:
        conn = await connections.connect(settings.dsn, application="fedstac doctor")
    except Exception:
        return  # that is said already
    try:
        places = [each for each in (await metrics.places(conn)) if each.origin == origin_name]
    finally:
        conn.terminate()
    for place in places:
        cursor = Cursor(place.epoch, place.position)
        try:
            await origin.send("GET", "/events", {"after": str(cursor), "limit": 1})
        except BehindRetention:
            yield fault(
                "sources", address.address, f"its feed does not go on from {cursor}, where the {place.consumer} is",
                "the follower takes a snapshot by itself when it runs; by hand: fedstac rebuild --from snapshot",
            )  # fmt: skip


CHECKS: Final[Sequence[Check]] = (variables, replica_node, vocabularies, mail_server, identity_providers)
DATABASE_CHECKS: Final[Sequence[DatabaseCheck]] = (
    name, sequencer_login, log_and_queue, background_parts, sinks, parked_events, tokens, pins,
)  # fmt: skip
