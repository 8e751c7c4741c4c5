"""The settings that name sources: which nodes are followed, with which token each, and what brings their events."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import httpx

TOKEN = re.compile(r"[!-~]*")  # what a header takes
SCHEMES = ("http", "https")
BROKERS = ("nats", "kafka")  # which keep a log
ORIGIN = r"[a-z][a-z0-9-]{0,62}"  # as the name of a node
HTTP_FEED = "http"  # the word for the origin's own feed, where several sources have different ones
FEED_OPTIONS = ("config", "format", "gap", "origin", "status")
ESGF = "esgf"  # the format of a topic behind which there is no fedstac node
SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


class SourcesUnclear(Exception):
    """The settings do not say which nodes are followed, or with which tokens; the message says what to set."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A stream or topic of a broker: `nats://host:port/STREAM`, `kafka://host:port,host:port/topic?option=value`."""

    scheme: str
    servers: tuple[str, ...]  # host:port each
    name: str  # of the stream or the topic
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        options = f"?{urlencode(self.options)}" if self.options else ""
        return f"{self.scheme}://{','.join(self.servers)}/{self.name}{options}"

    @classmethod
    def parse(cls, text: str, *, options: Sequence[str] | None = FEED_OPTIONS) -> BrokerAddress:
        """Read an address. ValueError, with a sentence that names the fault, where it is none.

        `options`: those that it may have; None: any.
        """
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in BROKERS:
            raise ValueError(
                f"{_without_secrets(text)} begins with none of {', '.join(f'{each}://' for each in BROKERS)}"
            )
        parts = urlsplit(f"//{rest}")
        if "@" in parts.netloc:
            raise ValueError("an address has no user and no password: name a file with them, ?config=<file>")
        servers = tuple(parts.netloc.split(","))
        for server in servers:
            match = SERVER.fullmatch(server)
            if match is None or not 0 < int(match[2]) < 65536:
                raise ValueError(f"{_without_secrets(text)} has {server!r} for host:port")
        name = unquote(parts.path.removeprefix("/"))
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name):
            raise ValueError(
                f"{_without_secrets(text)} names no stream or topic after its host: {scheme}://host:port/NAME"
            )
        if scheme == "nats" and "." in name:
            raise ValueError(f"{name!r} is no name of a stream of NATS: it has letters, digits, - and _ only")
        pairs = dict(parse_qsl(parts.query, keep_blank_values=True))
        if options is not None and (unknown := sorted(pairs.keys() - set(options))):
            raise ValueError(f"{_without_secrets(text)} has the option {unknown[0]!r}; there are {', '.join(options)}")
        return cls(scheme, servers, name, MappingProxyType(pairs))


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """A publishing node that is followed, and this node's token there. `feed`: the broker that brings its events.

    A topic in ESGF's format stands for itself: its own address is in place of the node's.
    """

    address: str
    token: str = field(repr=False)
    feed: BrokerAddress | None = None  # None: the node's own HTTP feed
    token_source: Callable[[], str] | None = field(default=None, repr=False)  # gives a token that lasts, instead

    @property
    def topic_origin(self) -> str | None:
        """The origin of the datasets of a topic in ESGF's format; None where a node is followed."""
        return self.feed.options["origin"] if self.feed is not None and _is_esgf(self.feed) else None


def read_addresses(
    setting: str, tokens: str | None, overrides: Sequence[str] = (), *, feeds: str = ""
) -> tuple[SourceAddress, ...]:
    """Return the sources that `source` and `source_token` name: the first token is for the first address, and so on.

    `tokens`: None where the caller adds them. `overrides`: these addresses alone. If the settings do not have them all,
    they take the tokens in their order.
    `feeds`: what brings the events of each, in the same order; empty: the HTTP feed of all. Topics in ESGF's format are
    followed beside them.
    SourcesUnclear where that does not come out even: a token must not be shown to another node than its own.
    """
    configured = [address.rstrip("/") for address in _split(setting)]
    addresses = [address.rstrip("/") for address in overrides] or configured
    feed_addresses = [_feed(text) for text in feeds.split()]  # no commas: Kafka's address may have several servers
    topics = [SourceAddress(str(feed), "", feed) for feed in feed_addresses if feed is not None and _is_esgf(feed)]
    origins = [topic.topic_origin for topic in topics]
    if len(set(origins)) < len(origins):
        raise SourcesUnclear("FEDSTAC_SOURCE_FEED names two topics of one origin; give each an origin of its own")
    if topics and not addresses:
        return tuple(topics)
    if not addresses:
        raise SourcesUnclear("say which node is followed: --source https://… or FEDSTAC_SOURCE")
    for address in addresses:
        if not _is_address(address):
            raise SourcesUnclear(f"{address!r} is no address of a node; it begins with http:// or https://")
        if addresses.count(address) > 1:
            raise SourcesUnclear(f"{address} is named twice; a node is followed once")
    strangers = set(addresses) - set(configured)
    paired = addresses if strangers else configured
    token_list = [""] * len(paired) if tokens is None else _split(tokens) or ([""] if len(paired) == 1 else [])
    if len(token_list) != len(paired):
        raise SourcesUnclear(
            f"FEDSTAC_SOURCE_TOKEN has {len(token_list)} tokens for {len(paired)} sources; it needs one for each of "
            f"{', '.join(paired)}, in this order, with spaces between"
        )
    if tokens is not None and strangers and strangers != set(addresses) and len(token_list) == len(configured):
        raise SourcesUnclear(
            f"FEDSTAC_SOURCE has some of those named, and not {', '.join(sorted(strangers))}: it cannot be told whose "
            f"the tokens are"
        )
    pairs = list(zip(paired, token_list, strict=True))
    if odd := [address for address, token in pairs if not TOKEN.fullmatch(token)]:
        raise SourcesUnclear(f"the token for {odd[0]} has characters that no token has; copy it again")
    token_of = dict(pairs)
    feed_of = _feeds([feed for feed in feed_addresses if feed is None or not _is_esgf(feed)], paired)
    nodes = tuple(SourceAddress(address, token_of[address], feed_of[address]) for address in addresses)
    return nodes if overrides else (*nodes, *topics)


def _feeds(feeds: Sequence[BrokerAddress | None], addresses: Sequence[str]) -> Mapping[str, BrokerAddress | None]:
    """Return what brings the events of each node. SourcesUnclear where it cannot be told."""
    feeds = feeds or [None] * len(addresses)
    if len(feeds) != len(addresses):
        raise SourcesUnclear(
            f"FEDSTAC_SOURCE_FEED has {len(feeds)} feeds for {len(addresses)} sources; it needs one for each of "
            f"{', '.join(addresses)}, in this order, with spaces between; {HTTP_FEED} is the node's own feed"
        )
    return dict(zip(addresses, feeds, strict=True))


def _feed(text: str) -> BrokerAddress | None:
    """Read one feed; None is a node's own. SourcesUnclear where it cannot be told."""
    try:
        feed = None if text == HTTP_FEED else BrokerAddress.parse(text)
        if feed is not None and _is_esgf(feed):
            if feed.scheme != "kafka":
                raise ValueError(f"{feed}: a topic in ESGF's format is one of Kafka")
            if not re.fullmatch(ORIGIN, feed.options.get("origin", "")):
                raise ValueError(
                    f"{feed}: say by &origin=<name> which origin its datasets have; small letters, digits and hyphens"
                )
            if feed.options.get("gap", "accept") != "accept":
                raise ValueError(f"{feed}: gap=accept is all that gap can say")
    except ValueError as error:
        raise SourcesUnclear(f"FEDSTAC_SOURCE_FEED: {error}") from None
    return feed


def _is_esgf(feed: BrokerAddress) -> bool:
    return feed.options.get("format") == ESGF


def _is_address(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in SCHEMES and bool(url.host)


def _split(text: str) -> list[str]:
    return [part for part in re.split(r"[\s,]+", text) if part]


def _without_secrets(text: str) -> str:
    """Return an address without what may be a password in it."""
    return repr(re.sub(r"//[^/@]*@", "//…@", text.partition("?")[0])[:100])
