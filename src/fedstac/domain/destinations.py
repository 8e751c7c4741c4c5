"""Where notifications may go. Pure: an address in, what it is and whether it may be used out.

What a client names is never fetched because a client named it: its host has to be one that the operator allows, or the
owner of the mailbox or webhook has confirmed it with a code that was sent there.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from fedstac.domain.errors import BadRequest

LONGEST = 1000
TOPICS = ("request", "dataset", "subscription")  # what somebody may ask for; alerts go where the settings say
_MAILBOX = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@([A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)", re.ASCII
)
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|[0-9a-f:.]+", re.ASCII)
_LABEL = re.compile(r"[^.]{1,63}")
_VISIBLE = re.compile(r"[!-~]+", re.ASCII)
ONLY_LISTED_PLAIN = "plain http is for the networks that the operator lists; write https://…"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Channel(StrEnum):
    """How a destination gets its messages."""

    MAIL = "mail"
    WEBHOOK = "webhook"  # signed JSON
    SLACK = "slack"  # {text, blocks}, signed too


@dataclass(frozen=True, slots=True)
class Address:
    """`mailto:…`, `https://…` or `slack+https://…`, read."""

    kind: Channel
    target: str  # the mailbox, or the URL that is posted to
    host: str  # in lower case: the mailbox's domain, or the URL's host

    def __str__(self) -> str:
        prefix = {Channel.MAIL: "mailto:", Channel.SLACK: "slack+", Channel.WEBHOOK: ""}[self.kind]
        return prefix + self.target

    @property
    def for_logs(self) -> str:
        """For logs: the path of a webhook is often a secret."""
        return f"{self.kind} {self.host}"


def parse(text: str, *, private: bool = False, networks: Sequence[Network] = ()) -> Address:
    """Read an address as somebody wrote it; BadRequest where it is none.

    `private`: http and the own network are taken too. `networks`: those that may be private, and have plain http. The
    address behind a name is judged when it is connected to; here only what shows by itself is refused.
    """
    if len(text) > LONGEST or not _VISIBLE.fullmatch(text):
        raise BadRequest(
            f"an address is at most {LONGEST} visible ASCII characters: mailto:…, https://… or slack+https://…"
        )
    if text.lower().startswith("mailto:"):
        mailbox = text[len("mailto:") :]
        match = _MAILBOX.fullmatch(mailbox)
        if not match or ".." in mailbox:
            raise BadRequest(f"{text!r} names no mailbox; write mailto:name@example.org")
        return Address(Channel.MAIL, mailbox, match[1].lower())
    kind, url = (Channel.SLACK, text[len("slack+") :]) if text.startswith("slack+") else (Channel.WEBHOOK, text)
    return Address(kind, url, _host_of(url, private=private, networks=networks))


def _host_of(url: str, *, private: bool, networks: Sequence[Network]) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise BadRequest("a webhook's address is no URL; write https://host/path") from None
    if parts.scheme != "https" and not ((private or networks) and parts.scheme == "http"):
        raise BadRequest("a webhook's address begins with https:// (or slack+https://), a mailbox's with mailto:")
    host = (parts.hostname or "").rstrip(".")
    if parts.username is not None or parts.password is not None or parts.fragment or not _HOST.fullmatch(host):
        raise BadRequest("a webhook's address is https://host/path, with a plain host and without a user or a fragment")
    if not _is_ip(host) and not all(map(_LABEL.fullmatch, host.split("."))):
        raise BadRequest("a webhook's host has an empty part, or one of more than 63 characters")
    if private:
        return host
    if (host == "localhost" and not networks) or (_is_ip(host) and not is_within(host, networks)):
        raise BadRequest("a webhook's address is one of the internet, not of this machine or its network")
    if _is_ip(host) and not may_lead_to(host, parts.scheme, networks):
        raise BadRequest(ONLY_LISTED_PLAIN)
    return host


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def allows(patterns: Sequence[str], host: str) -> bool:
    """Tell whether the operator lets clients name this host. `*` stands for any characters, dots too."""
    return any(fnmatchcase(host, pattern.lower()) for pattern in patterns)


# beyond what `is_global` says, which knows the registries as of its Python: protocol assignments, 6to4's old relays
_OTHERWISE_USED = tuple(ipaddress.ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23"))
_UNICAST6 = ipaddress.ip_network("2000::/3")  # the only IPv6 addresses that are given out; not NAT64's, nor ::a.b.c.d


def is_public(address: str) -> bool:
    """Tell whether an IP address is the internet's: not loopback, private, link-local, reserved nor hiding one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return is_public(str(inner))
        if ip not in _UNICAST6:
            return False
    if any(ip in network for network in _OTHERWISE_USED if network.version == ip.version):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def networks_of(texts: Sequence[str]) -> tuple[Network, ...]:
    """Read networks as an operator lists them: 10.20.0.0/16, 192.0.2.7. ValueError where a text is none."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Tell whether an IP address is the internet's, or of one of these networks."""
    return is_public(address) or _is_listed(address, networks)


def may_lead_to(address: str, scheme: str, networks: Sequence[Network]) -> bool:
    """Tell whether a webhook may lead to an IP address: by https to the internet, and by any scheme to these networks.

    What goes to the internet by plain http can be read on the way, and the receiver's signature is no seal on it.
    """
    return is_within(address, networks) if scheme == "https" else _is_listed(address, networks)


def _is_listed(address: str, networks: Sequence[Network]) -> bool:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return any((inner or ip) in network for network in networks)


def confirmation_code(secret: bytes) -> str:
    """Return the code that proves that a message arrived. It follows from the destination's secret."""
    return base64.b32encode(hmac.digest(secret, b"fedstac confirmation", hashlib.sha256))[:16].decode()


def signature(secret: bytes, id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature` (Standard Webhooks 1.0, symmetric signatures)."""
    signed = b"%s.%d.%s" % (id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def shown_secret(secret: bytes) -> str:
    """Return a secret as libraries of Standard Webhooks take it."""
    return "whsec_" + base64.b64encode(secret).decode()
