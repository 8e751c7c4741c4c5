"""Changes of a request at a random place: its line, its headers, its body, its caller."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import quote

import orjson

from tests.api.mutations import mutate
from tests.hostile.site import ROLES
from tests.hostile.wire import Ask

TEXTS = (
    "", "0", "-1", "1e400", "NaN", "null", "true", "x" * 3000, "'", '"', "%", "\\", "..", ".", "a,b", "é", "日本",
    "\u200b", "🌍\u202e", "'; DROP TABLE x; --", "$1", "{}", "[]", "[[[[", "(((((((((((((((((((id=1", "1850-01-01/..",
    "../..", "9999-12-31T23:59:59.9999999Z", "-180,-90,180,90", "18446744073709551616", "%00", "+1", "*",
    "00000000-0000-0000-0000-000000000000", "id IN (" + ",".join(["'a'"] * 500) + ")", "NOT " * 50 + "a=1",
    "a" * 200 + ":b", 'W/"x"', "bytes=0-1", "wait=0", "gzip;q=0.5, *;q=0", "text/html", "application/x-ndjson",
)  # fmt: skip
HEADERS = (
    "Accept", "Accept-Encoding", "Content-Encoding", "Content-Type", "If-Match", "If-None-Match", "Prefer", "Origin",
    "Idempotency-Key", "X-Request-Id", "Fedstac-Override", "Range", "Authorization", "Host", "Content-Length", "Expect",
    "Transfer-Encoding", "Connection", "X-Forwarded-For", "Forwarded", "Cookie", "Access-Control-Request-Method",
    "If-Modified-Since", "Last-Event-ID", "traceparent", "Upgrade",
)  # fmt: skip
PARAMETERS = (
    "limit", "token", "ids", "collections", "bbox", "datetime", "intersects", "filter", "filter-lang", "filter-crs",
    "query", "sortby", "fields", "q", "after", "types", "shard", "wait", "format", "status", "dry_run", "as", "action",
    "item", "node", "retracted", "access", "epoch", "prefix", "search", "cascade", "confirm", "apply_to_open", "open",
    "standing", "dependency", "project", "state", "since", "version", "reason",
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO")

Change = Callable[[Ask, random.Random], Ask]


def mutated(ask: Ask, chance: random.Random) -> Ask:
    """Return the request after one to three changes, half of the time by another caller."""
    ask = replace(ask, role=chance.choice((*ROLES, *(ask.role for _ in ROLES))))
    for _ in range(chance.choice((1, 1, 2, 3))):
        ask = chance.choice(CHANGES)(ask, chance)
    return ask


def _changes_path(ask: Ask, chance: random.Random) -> Ask:
    parts = ask.path.split("/")
    parts[chance.randrange(1, len(parts))] = quote(chance.choice(TEXTS), safe=chance.choice(("", "%,'()*+")))
    return replace(ask, path="/".join(parts))


def _changes_query(ask: Ask, chance: random.Random) -> Ask:
    pairs = list(ask.query)
    at = chance.randrange(len(pairs) + 1)
    match chance.choice(("value", "name", "drop", "twice", "more")):
        case "value" if pairs:
            at %= len(pairs)
            pairs[at] = (pairs[at][0], chance.choice(TEXTS))
        case "name" if pairs:
            at %= len(pairs)
            pairs[at] = (chance.choice((*PARAMETERS, *TEXTS[:8])), pairs[at][1])
        case "drop" if pairs:
            del pairs[at % len(pairs)]
        case "twice" if pairs:
            pairs.append(pairs[at % len(pairs)])
        case _:
            pairs.insert(at, (chance.choice(PARAMETERS), chance.choice(TEXTS)))
    return replace(ask, query=tuple(pairs))


def _changes_text(ask: Ask, chance: random.Random) -> Ask:
    """Splice, cut or repeat a piece of a parameter: what is nearly right reaches further than nonsense."""
    pairs = list(ask.query)
    if not pairs:
        return _changes_query(ask, chance)
    at = chance.randrange(len(pairs))
    name, text = pairs[at]
    start, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
    piece = chance.choice((text[start:end] * 2, "", chance.choice(TEXTS)[:200], chance.choice("(),'\"%{}[]= ")))
    pairs[at] = (name, text[:start] + piece + text[end:])
    return replace(ask, query=tuple(pairs))


def _changes_header(ask: Ask, chance: random.Random) -> Ask:
    value = chance.choice(TEXTS).encode("utf-8").decode("latin-1")
    return replace(ask, headers={**ask.headers, chance.choice(HEADERS): value})


def _changes_document(ask: Ask, chance: random.Random) -> Ask:
    try:
        document = orjson.loads(ask.body)
    except orjson.JSONDecodeError:
        return _changes_bytes(ask, chance)
    if not isinstance(document, dict | list):
        return _changes_bytes(ask, chance)
    for _ in range(chance.choice((1, 1, 2, 5))):
        mutate(document, chance)  # type: ignore[arg-type]  # lists are walked alike
    return replace(ask, body=orjson.dumps(document))


def _changes_bytes(ask: Ask, chance: random.Random) -> Ask:
    body = bytearray(ask.body or b"{}")
    for _ in range(chance.choice((1, 3, 10))):
        at = chance.randrange(len(body) + 1)
        match chance.choice(("flip", "cut", "insert")):
            case "flip" if at < len(body):
                body[at] = chance.randrange(256)
            case "cut":
                del body[at : at + chance.randrange(50)]
            case _:
                body[at:at] = chance.choice(
                    (b"\xff", b"\x00", b"[", b"{", b'"', b"1e999", b"\xed\xa0\x80", b",", b"NaN")
                )
    return replace(ask, body=bytes(body))


def _packs_body(ask: Ask, chance: random.Random) -> Ask:
    packed = gzip.compress(ask.body, 1, mtime=0)
    cut = packed[: chance.choice((len(packed), len(packed) - 1, len(packed) // 2))]
    return replace(
        ask, body=cut, headers={**ask.headers, "Content-Encoding": chance.choice(("gzip", "br", "gzip, gzip"))}
    )


def _sends_lines(ask: Ask, chance: random.Random) -> Ask:
    lines = [ask.body] * chance.randrange(1, 4) + [b"", b"{", b"null"]
    chance.shuffle(lines)
    return replace(ask, body=b"\n".join(lines), headers={**ask.headers, "Content-Type": "application/x-ndjson"})


def _changes_method(ask: Ask, chance: random.Random) -> Ask:
    return replace(ask, method=chance.choice(METHODS))


CHANGES: tuple[Change, ...] = (
    _changes_path, _changes_query, _changes_query, _changes_text, _changes_text, _changes_header, _changes_document,
    _changes_document, _changes_document, _changes_bytes, _packs_body, _sends_lines, _changes_method,
)  # fmt: skip
