"""Sources: the hosts that files may be fetched from, and which of the copies of a file is tried first."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from fedstac.domain.alternates import alternates_of
from fedstac.domain.facets import NODES
from fedstac.domain.replication.calendar import Calendar

Json = Mapping[str, Any]
PORTS: Final[Mapping[str, int | None]] = {"https": 443, "http": 80, "s3": None, "file": None, "globus": None}
LONGEST_HREF: Final = 4096
LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
PATTERN: Final = re.compile(
    rf"(?:(?P<scheme>https?|s3|globus)://)?(?P<host>(?:\*\.)?{LABEL}(?:\.{LABEL})*|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}|\*))?",
    re.ASCII,
)
FILE: Final = "file://"  # and a folder of this machine


@dataclass(frozen=True, slots=True)
class HrefPlace:
    """Where an href leads: a scheme, a host (a bucket, an endpoint; empty for a file of this machine) and a port.

    path: of a file of this machine, decoded and without `..`; empty for all others.
    """

    scheme: str
    host: str
    port: int | None
    path: str = ""

    def __str__(self) -> str:
        """Return it as policies name it: the scheme only where it is not https, the port where it is not usual."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port not in (None, PORTS[self.scheme]) else ""
        return ("" if self.scheme == "https" else f"{self.scheme}://") + host + port


def place_of(href: object) -> HrefPlace | None:
    """Return where an href leads; None where nothing can be fetched from it.

    It has to be absolute, of a scheme that is known, without a user or a password, and free of blanks.
    """
    if not isinstance(href, str) or len(href) > LONGEST_HREF or not href.isprintable() or " " in href or "\\" in href:
        return None
    try:
        parts = urlsplit(href)
        port = parts.port
    except ValueError:
        return None
    scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
    if scheme not in PORTS or "@" in parts.netloc:
        return None
    if scheme == "file":
        path = unquote(parts.path)
        fits = host in ("", "localhost") and port is None and _is_plain(path)
        return HrefPlace(scheme, "", None, path) if fits else None
    if not host or (port is not None and PORTS[scheme] is None):
        return None
    return HrefPlace(scheme, host, port or PORTS[scheme])


def _is_plain(path: str) -> bool:
    """Tell whether a path is absolute and leads nowhere but where it seems to."""
    return path.startswith("/") and path.isprintable() and not {"..", "."} & set(path.split("/"))


@dataclass(frozen=True, slots=True)
class HostPattern:
    """Hosts as a policy lists them: `data.example.org`, `*.example.org`, `http://10.0.0.7:8080`, `s3://bucket`.

    Without a scheme it is https, without a port that of the scheme. `*.` stands for one label or more. Of files of this
    machine (`file:///folder`), `host` is the folder that they lie in.
    """

    scheme: str
    host: str
    port: int | None  # None: any

    @classmethod
    def parse(cls, text: str) -> HostPattern | None:
        """Read a pattern; None where the text is none."""
        if text.startswith(FILE):
            folder = text.removeprefix(FILE).rstrip("/")
            return cls("file", folder, None) if _is_plain(folder) else None
        match = PATTERN.fullmatch(text)
        if match is None:
            return None
        scheme, host, port = match["scheme"] or "https", match["host"].lower().strip("[]"), match["port"]
        if PORTS[scheme] is None:
            return cls(scheme, host, None) if port is None and "*" not in host else None
        if host.startswith("*.") and ("." not in host[2:]):
            return None  # all of a top-level domain
        if port is not None and port != "*" and not 0 < int(port) < 65536:
            return None
        return cls(scheme, host, None if port == "*" else int(port) if port else PORTS[scheme])

    def __str__(self) -> str:
        """Return it as policies write it."""
        if self.scheme == "file":
            return FILE + self.host
        text = str(HrefPlace(self.scheme, self.host, self.port or PORTS[self.scheme]))
        return text + ":*" if self.port is None and PORTS[self.scheme] is not None else text

    @property
    def is_wild(self) -> bool:
        return self.host.startswith("*.")

    def fits(self, place: HrefPlace) -> bool:
        """Tell whether a place is one of these hosts."""
        if place.scheme != self.scheme or (self.port is not None and place.port != self.port):
            return False
        if self.scheme == "file":
            return place.path.startswith(self.host + "/")
        return place.host.endswith(self.host[1:]) if self.is_wild else place.host == self.host


@dataclass(frozen=True, slots=True)
class Source:
    """An entry of the policy's list of sources. The caps hold for all of its hosts together.

    `nodes`: files of these nodes only; empty for all. A higher preference comes first. bandwidth: bytes a second.
    `private`: its hosts may have addresses of a private network. A wildcard never has.
    """

    name: str
    hosts: tuple[HostPattern, ...]
    nodes: frozenset[str] = frozenset()
    preference: int = 0
    bandwidth: int | None = None
    connections: int | None = None
    calendar: Calendar = field(default_factory=Calendar)
    private: bool = False

    def serves(self, place: HrefPlace, node: str | None) -> bool:
        """Tell whether files of a node at a place are of this source; of no node (a redirect): whether the host is."""
        return (node is None or not self.nodes or node in self.nodes) and any(host.fits(place) for host in self.hosts)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A copy of an asset that may be fetched. `host` is that of its href, `source` the entry of the policy."""

    node: str
    href: str
    host: str
    source: str


@dataclass(frozen=True, slots=True)
class CopyRefusal:
    """A copy that is never fetched, and why."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The copies of an asset in the order in which they are tried, and those that never are."""

    candidates: tuple[Candidate, ...]
    refusals: tuple[CopyRefusal, ...]

    @property
    def reason(self) -> str:
        """Why there is no candidate; "" where there is one."""
        if self.candidates:
            return ""
        if not self.refusals:
            return "no copy of it is known but our own"
        return "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in self.refusals)


def source_of(sources: Sequence[Source], href: object, node: str | None = None) -> Source | None:
    """Return the first source of the policy that an address belongs to; None: nothing is ever fetched from it."""
    place = place_of(href)
    if place is None:
        return None
    return next((source for source in sources if source.serves(place, node)), None)


def choose(
    asset: Json,
    sources: Sequence[Source],
    *,
    home: str,
    own: str = "",
    failures: Mapping[str, int] | None = None,
    loads: Mapping[str, float] | None = None,
    disqualified: Collection[tuple[str, str]] = (),
) -> Choice:
    """Return the copies of an asset: by preference, then health, then load; the original before its replicas.

    home: the node of the original, where the asset does not name it. own: this node, which is no source of itself.
    failures: of hosts, in a row. loads: of sources, the transfers under way as a share of what it may have.
    disqualified: the nodes and hosts whose copy of this very file was wrong.
    """
    ranks: list[tuple[tuple[float, ...], Candidate]] = []
    refusals: list[CopyRefusal] = []
    for rank, (node, href) in enumerate(_copies(asset, home)):
        if node == own:
            continue
        place, source = place_of(href), source_of(sources, href, node)
        if place is None:
            refusals.append(CopyRefusal(node, "its address is none that files are fetched from"))
        elif source is None:
            refusals.append(CopyRefusal(node, _unlisted(place, sources)))
        elif (node, host := str(place)) in disqualified:
            refusals.append(CopyRefusal(node, f"its copy at {host} was wrong"))
        else:
            order = (-source.preference, (failures or {}).get(host, 0), (loads or {}).get(source.name, 0.0), rank)
            ranks.append((order, Candidate(node, str(href), host, source.name)))
    ranks.sort(key=lambda pair: pair[0])
    return Choice(tuple(candidate for _, candidate in ranks), tuple(refusals))


def _copies(asset: Json, home: str) -> Iterator[tuple[str, object]]:
    """Yield the node and the address of each copy, the original first."""
    node = asset.get(NODES)
    yield node if isinstance(node, str) and node else home, asset.get("href")
    for node, entry in alternates_of(asset).items():
        if isinstance(entry, dict):
            yield node, entry.get("href")


def _unlisted(place: HrefPlace, sources: Sequence[Source]) -> str:
    """Return why no source of the policy has a place: its host is not listed, or not for this node."""
    if any(source.serves(place, None) for source in sources):
        return f"the policy lists {place} for files of other nodes; add this one to `nodes` of that source"
    return f"the policy does not list {place}; add it to `hosts` of a source"
