"""Which addresses of documents are fetched: only those of listed hosts, and no private ones that are not listed.

Pure: an address in, the parts to connect with out, or the reason that it is refused.
"""

from __future__ import annotations

import ipaddress
import os.path
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import quote, unquote, urlsplit

from fedstac.domain.destinations import is_public
from fedstac.domain.replication.choosing import HostPattern, Source

LONGEST = 8000  # characters of an address
HTTP = ("http", "https")
IN_TARGETS = "/%?:=&~+!$,;'@()*[]"  # beside letters and digits; the rest is written with %
PORTS = {"http": 80, "https": 443}


class AddressRefused(Exception):
    """An address is not fetched; the message says why and what would list it. It never has a user or a query in it."""


@dataclass(frozen=True, slots=True)
class SourceUrl:
    """An address that may be fetched. `target`: path and query of http, a key of s3, a path of file and globus."""

    scheme: str
    host: str  # lower case; a bucket of s3, a collection of globus, empty for file
    port: int  # 0 where the scheme has none
    target: str

    @property
    def for_people(self) -> str:
        """The address without its query, which may be a secret."""
        port = f":{self.port}" if self.port and self.port != PORTS.get(self.scheme) else ""
        return f"{self.scheme}://{self.host}{port}{self.target.partition('?')[0]}"


@dataclass(frozen=True, slots=True)
class AddressRules:
    """The sources that the operator lists. Without any, nothing is fetched.

    `hosts`: `data.example.org` (every port), `data.example.org:8443`, `*.example.org`, `https://data.example.org:443`,
    `s3://bucket`, `globus://collection`, `file:///folder`. `private`: those of them that may lead to addresses that are
    not of the internet, or networks as `10.0.0.0/8`. An IP address in `hosts` is listed by itself.
    """

    hosts: tuple[str, ...] = ()
    private: tuple[str, ...] = ()

    @classmethod
    def of_sources(cls, sources: Iterable[Source]) -> AddressRules:
        """Return the rules that follow from a policy's list of sources."""
        patterns = [(_pattern_of(host), source.private) for source in sources for host in source.hosts]
        return cls(
            tuple(pattern for pattern, _ in patterns), tuple(pattern for pattern, is_private in patterns if is_private)
        )

    def judge(self, href: str) -> SourceUrl:
        """Return what to fetch. AddressRefused where the address is none, or not of a listed host."""
        url = _parse(href)
        if url.scheme == "file":
            folders = [each.removeprefix("file://") for each in self.hosts if each.startswith("file:///")]
            if not any(_is_below(url.target, folder) for folder in folders):
                raise AddressRefused(f"{url.for_people} is in no listed folder; a source file:///folder lists one")
        elif url.scheme in HTTP:
            if not any(_fits(pattern, url) for pattern in self.hosts):
                raise AddressRefused(f"the host {url.host}:{url.port} is not among the sources of the policy")
        elif f"{url.scheme}://{url.host}" not in self.hosts:
            raise AddressRefused(f"{url.scheme}://{url.host} is not among the sources of the policy")
        return url

    def judge_connection(self, host: str, port: int, addresses: Sequence[str]) -> None:
        """Refuse a host that resolves to an address that is not of the internet and that nobody listed."""
        urls = [SourceUrl(scheme, host, port, "/") for scheme in HTTP]
        if any(_fits(pattern, url) for pattern in self.private for url in urls):
            return
        for address in addresses:
            if not is_public(address) and not self._lists(address):
                raise AddressRefused(
                    f"{host} leads to an address that is not of the internet; the policy can list it as private"
                )

    def _lists(self, address: str) -> bool:
        ip = _ip_of(address)
        if ip is None:
            return False
        if any(_ip_of(_host_of(pattern.rpartition("://")[2])) == ip for pattern in (*self.hosts, *self.private)):
            return True
        return any(ip in network for each in self.private if (network := _network_of(each)) is not None)


def _parse(href: str) -> SourceUrl:
    """Read an address of a document. AddressRefused where it is none that files are fetched from."""
    if len(href) > LONGEST or any(ord(each) < 32 or ord(each) == 127 for each in href):
        raise AddressRefused("the address is too long or has control characters")
    try:
        parts = urlsplit(href)
        port = parts.port
        host = (parts.hostname or "").rstrip(".").encode("idna").decode().lower()
        target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe=IN_TARGETS)
    except (ValueError, UnicodeError):
        raise AddressRefused("the address is no URL") from None
    if parts.username is not None or parts.password is not None:
        raise AddressRefused("an address with a user or a password in it is not fetched")
    match parts.scheme:
        case "http" | "https" if host:
            return SourceUrl(parts.scheme, host, PORTS[parts.scheme] if port is None else port, target)
        case "s3" if parts.netloc and parts.path.strip("/"):
            return SourceUrl("s3", parts.netloc, 0, href[len(f"s3://{parts.netloc}") :])  # a key may have ? and #
        case "globus" if parts.netloc and parts.path.strip("/"):
            return SourceUrl("globus", parts.netloc, 0, unquote(parts.path))
        case "file" if parts.netloc in ("", "localhost") and parts.path.startswith("/"):
            return SourceUrl("file", "", 0, unquote(parts.path))
    raise AddressRefused(f"an address of {parts.scheme or 'no scheme'}: is not one that files are fetched from")


def _fits(pattern: str, url: SourceUrl) -> bool:
    """Tell whether a pattern lists a host of http. Without a scheme it lists both, without a port all ports."""
    scheme, _, pattern = pattern.rpartition("://")
    if scheme not in ("", url.scheme):
        return False
    host = _host_of(pattern).lower()
    port = pattern[len(host) + (2 if pattern.startswith("[") else 0) :].removeprefix(":")
    return port in ("", "*", str(url.port)) and fnmatchcase(url.host, host)


def _pattern_of(host: HostPattern) -> str:
    if host.scheme not in HTTP:
        return f"{host.scheme}://{host.host}"
    name = f"[{host.host}]" if ":" in host.host else host.host
    return f"{host.scheme}://{name}:{host.port or '*'}"


def _host_of(pattern: str) -> str:
    if pattern.startswith("["):
        return pattern[1:].partition("]")[0]
    return pattern if pattern.count(":") > 1 else pattern.partition(":")[0]


def _ip_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _network_of(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text) if "/" in text else None
    except ValueError:
        return None


def _is_below(path: str, folder: str) -> bool:
    """Tell whether a path stays below a folder, by its text alone."""
    parts = path.split("/")
    return ".." not in parts and os.path.normpath(path).startswith(os.path.normpath(folder).rstrip("/") + "/")
