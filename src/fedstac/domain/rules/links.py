"""Rules for links, addresses and extensions: cite-as, link, href and extension."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fedstac.domain.documents import OUR_EXTENSION, is_of_the_server
from fedstac.domain.errors import Finding, pointer
from fedstac.domain.vocabulary import ANY_RELATION, LinkRule, Vocabulary
from fedstac.domain.wording import asking, brief, nearest

Document = Mapping[str, Any]
SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
UNSAFE: Final = re.compile(r"[\x00-\x20\x7f\\]")  # what browsers drop or turn, so that a scheme hides in it
SCHEMES: Final = frozenset(
    ("http", "https", "s3", "gs", "ftp", "ftps", "gsiftp", "sftp", "globus", "hdl", "doi", "urn")
)


def check(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield the faults of the links of each relation that the project asks for; `*` is every relation."""
    for demand in vocabulary.links:
        rule = "cite-as" if demand.rel == "cite-as" else "link"
        is_there = False
        for n, link in enumerate(document["links"]):
            if demand.rel in (link["rel"], ANY_RELATION) and not is_of_the_server(link):
                is_there = True
                yield from _check_link(n, link, demand, rule)
        if demand.required and not is_there:
            yield Finding(rule, "/links", f"{vocabulary.project} needs a link with the relation `{demand.rel}`")


def _check_link(n: int, link: Mapping[str, Any], demand: LinkRule, rule: str) -> Iterator[Finding]:
    for member, expected in (("type", demand.type), ("title", demand.title)):
        value = link.get(member, expected)
        if expected is not None and value != expected:
            message = f"the `{member}` of a {demand.rel} link is {expected!r}, not {brief(value)}"
            yield Finding(rule, pointer("links", n, member), message, suggestion=expected)
    if demand.pattern is not None and not demand.pattern.fits(link["href"]):
        message = f"{brief(link['href'])} is not of the form {demand.pattern.text}"
        yield Finding(rule, pointer("links", n, "href"), message)


def check_extensions(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Yield the extensions that the project does not take, and those that it needs and misses.

    A URI is compared, never fetched.
    """
    uris = document.get("stac_extensions", [])
    if type(uris) is not list:  # the schema says it
        return
    declared = set()
    for n, uri in enumerate(uris):
        extension = vocabulary.uris.get(uri) if type(uri) is str else None
        if extension is not None:
            declared.add(extension.name)
        elif not (type(uri) is str and OUR_EXTENSION in uri):
            suggestion = nearest(str(uri), vocabulary.uris)
            message = asking(f"{vocabulary.project} does not take the extension {str(uri)[:200]!r}", suggestion)
            yield Finding("extension", pointer("stac_extensions", n), message, suggestion=suggestion)
    for extension in vocabulary.extensions:
        if extension.required and extension.name not in declared:
            message = f"{vocabulary.project} needs the extension {extension.name}: declare {extension.uris[0]}"
            yield Finding("extension", "/stac_extensions", message, suggestion=extension.uris[0])


def check_addresses(document: Document) -> Iterator[Finding]:
    """Yield the addresses in which a script may hide: a browser shows them as links. Holds without a vocabulary too."""
    for n, link in enumerate(document["links"]):
        if not _is_harmless(link["href"]):
            yield _harmful(link["href"], pointer("links", n, "href"))
    for key, asset in document["assets"].items():
        if not _is_harmless(asset.get("href")):
            yield _harmful(asset["href"], pointer("assets", key, "href"))
        alternates = asset.get("alternate")
        for node, alternate in alternates.items() if type(alternates) is dict else ():
            if type(alternate) is dict and not _is_harmless(alternate.get("href")):
                yield _harmful(alternate["href"], pointer("assets", key, "alternate", node, "href"))


def _is_harmless(href: object) -> bool:
    if type(href) is not str or href.startswith("https://"):
        return True
    scheme = SCHEME.match(UNSAFE.sub("", href))
    return scheme is None or scheme[1].lower() in SCHEMES


def _harmful(href: str, place: str) -> Finding:
    return Finding("href", place, f"{brief(href)} is no address that is taken here; use http, https or a relative one")
