"""Roles: what a node's process does. Each says which parts run, what its settings have to be, and how it stands.

A consumer that follows other nodes is a handler (workers/pages.py) and a role made with `consumer`. Several roles
share one database: each has its own cursor, parked events and lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fedstac.bootstrap import Part
from fedstac.db import nodes
from fedstac.db.health import NodeParts
from fedstac.db.parts import PartReport
from fedstac.messaging.sources import broker_of
from fedstac.messaging.sources.addresses import HTTP_FEED, SourceAddress, read_addresses
from fedstac.settings import Settings
from fedstac.workers import (
    bulk_changes,
    cascading,
    deletions,
    following,
    grant_turns,
    index_node,
    load_steps,
    notifier,
    publisher,
    relay,
    replica_identity,
    replica_node,
    retention,
    sequencer,
    snapshots,
    statuses,
    subscriptions,
)
from fedstac.workers.following import MakeHandler

STALLED_SECONDS = 60.0  # so long unworked, an item says that workers are missing
UNWELL = ("absent", "partly", "stalled")  # words of a stand that are a reason not to be ready

PUBLISHER = Part("publisher", publisher.run)
BULK = Part("bulk", bulk_changes.run)
LOADS = Part(load_steps.PART, load_steps.run)
GRANTS = Part(grant_turns.PART, grant_turns.run)
SEQUENCER = Part("sequencer", sequencer.run)
NOTIFIER = Part("notifier", notifier.run)
RELAY = Part("relay", relay.run)
RETENTION = Part("retention", retention.run)
STATUSES = Part(statuses.PART, statuses.run)
CASCADES = Part(cascading.PART, cascading.run)
SUBSCRIPTIONS = Part(subscriptions.PART, subscriptions.run)
DELETIONS = Part(deletions.PART, deletions.run)
SNAPSHOT_FOLDER = Part("snapshot folder", snapshots.keep)
HOUSEKEEPING = Part("housekeeping", index_node.keep_house)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a role's stand is told by: the settings, the database's locks and queue, the parts of all processes."""

    settings: Settings
    parts: NodeParts
    standings: Mapping[str, PartReport]


@dataclass(frozen=True, slots=True)
class Role:
    """One of the things that a node's processes do.

    parts: what runs beside the API; it raises where a setting that the role needs is missing or wrong.
    stand: what /healthcheck says of it, in words.
    follows: it shows what other nodes announce; nothing is published here.
    """

    name: str
    parts: Callable[[Settings], Sequence[Part]]
    stand: Callable[[Outlook], Mapping[str, object]]
    follows: bool = False


# --- publish ---


def _publishing_parts(settings: Settings) -> Sequence[Part]:
    """Return what runs inside the api process, unless processes of their own do it.

    Misconfigured where the settings of notifications are wrong.
    """
    notifier.check(settings)
    subscriptions.check(settings)
    workers = (
        *([PUBLISHER] * settings.workers), BULK, LOADS, SEQUENCER, RETENTION, NOTIFIER, RELAY, STATUSES, CASCADES,
        DELETIONS, SUBSCRIPTIONS, GRANTS,
    )  # fmt: skip
    return (
        *(workers if settings.run_workers else ()),
        *([SNAPSHOT_FOLDER] if settings.snapshot_folder else ()),  # by whoever serves its files
    )


def _publishing_stand(outlook: Outlook) -> Mapping[str, object]:
    sinks = outlook.parts.sinks
    return {
        "sequencer": "leading" if outlook.parts.sequencer else "absent",
        "workers": _workers(outlook),
        "deletions": _word(outlook.standings.get(DELETIONS.name)),
        **({"relay": _relay(outlook), "sinks": sinks} if sinks else {}),
    }


def _relay(outlook: Outlook) -> str:
    """Return how the relay stands. A sink that is away or paused is no reason to take the node out of service."""
    relays = outlook.standings.get(RELAY.name)
    if "sending" in outlook.parts.sinks.values():
        return "sending"
    return "idle" if relays is not None and relays.running else "absent"


def _workers(outlook: Outlook) -> str:
    workers = outlook.standings.get(PUBLISHER.name)
    if outlook.parts.working:
        return "working"
    if workers is None or not workers.running:
        return "absent"
    if outlook.parts.waiting_seconds is None:
        return "idle"
    return "stalled" if outlook.parts.waiting_seconds > STALLED_SECONDS else "working"


# --- consumers ---


def addresses(settings: Settings, overrides: Sequence[str] = ()) -> tuple[SourceAddress, ...]:
    """Return the sources that the settings name, or these. SourcesUnclear where they do not say it."""
    return read_addresses(settings.source, settings.source_token, overrides, feeds=settings.source_feed)


def with_sources(settings: Settings, overrides: Sequence[str], *, by_identity: bool = False) -> Settings:
    """Return the settings with these sources in place of those that they name, and the tokens and feeds of each.

    by_identity: a node that has no tokens for them reads them by its own identity.
    """
    tokens = None if by_identity and not settings.source_token else settings.source_token
    sources = read_addresses(settings.source, tokens, overrides, feeds=settings.source_feed)
    nodes = [each for each in sources if each.topic_origin is None]
    return settings.model_copy(update={
        "source": " ".join(each.address for each in nodes),
        "source_token": " ".join(each.token for each in nodes).strip(),
        "source_feed": " ".join(str(each.feed) if each.feed else HTTP_FEED for each in sources),
    })  # fmt: skip


def consumer(
    name: str, make_handler: MakeHandler, *, part: str | None = None, others: Sequence[Part] = (),
    sources_of: Callable[[Settings], Sequence[SourceAddress]] = addresses,
) -> Role:  # fmt: skip
    """Return a role that follows each source with a handler of its own.

    part: the name of a follower in logs and health; the name of the role unless another is given.
    others: what else runs beside the followers. sources_of: the sources, and as whom they are read.
    """
    word = part or name

    def parts(settings: Settings) -> Sequence[Part]:
        notifier.check(settings)
        sources = sources_of(settings)
        for feed in [source.feed for source in sources if source.feed is not None]:
            broker_of(feed)  # what is not installed is told before anything runs
        followers = [
            Part(label, partial(following.follow, source=source, make_handler=make_handler, name=label))
            for number, source in enumerate(sources, 1)
            if (label := word if number == 1 else f"{word} {number}")
        ]
        return (*followers, *others)

    return Role(
        name, parts, partial(_stand_of_followers, consumer=name, word=word, sources_of=sources_of), follows=True
    )


def _stand_of_followers(
    outlook: Outlook, *, consumer: str, word: str, sources_of: Callable[[Settings], Sequence[SourceAddress]] = addresses
) -> Mapping[str, object]:
    origins = outlook.parts.followers.get(consumer, {})
    words = {True: "following", False: "absent"}
    active, expected = sum(origins.values()), len(sources_of(outlook.settings))
    return {
        word: words[active > 0] if active in (0, expected) else "partly",
        "origins": {origin: words[is_followed] for origin, is_followed in origins.items()},
    }


PUBLISH = Role("publish", _publishing_parts, _publishing_stand)
INDEX = consumer(nodes.INDEX, index_node.index_handler, part="follower", others=[HOUSEKEEPING, NOTIFIER])


# --- replica nodes ---


def _replica_parts(settings: Settings) -> Sequence[Part]:
    """Return the followers, and what fetches, announces and takes away.

    Misconfigured, or PolicyBroken, where a setting or the policy file is missing or wrong.
    """
    make_handler, others = replica_node.parts(settings)
    return consumer(
        nodes.REPLICA, make_handler, others=[*others, NOTIFIER], sources_of=replica_identity.sources_of
    ).parts(settings)


def _replica_stand(outlook: Outlook) -> Mapping[str, object]:
    name = nodes.REPLICA
    followers = _stand_of_followers(outlook, consumer=name, word=name, sources_of=replica_identity.sources_of)
    words = {part: _word(outlook.standings.get(part)) for part in replica_node.PARTS}
    return {**followers, **words}


def _word(part: PartReport | None) -> str:
    return "running" if part is not None and part.running else "absent"


REPLICA = Role(nodes.REPLICA, _replica_parts, _replica_stand, follows=True)
