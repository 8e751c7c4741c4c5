"""Documents to publish, from files, folders and pipes of any length: read as a stream, one document at a time.

An Item, a FeatureCollection, newline-delimited JSON (also RFC 8142), each also gzipped; told apart by content, as a
pipe has no name. What is not usable JSON is reported with its place, and the rest goes on where a line ends it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from fedstac.domain import strict_json
from fedstac.domain.errors import Finding, MalformedJson

SUFFIXES = (".json", ".geojson", ".ndjson", ".jsonl", ".geojsonl", ".geojsons")
LONGEST_LINE = 16 << 20  # over any item that a server takes
CHUNK = 1 << 20
SNIFFED = 1 << 20  # of a first line, to see what a stream is
GZIP = b"\x1f\x8b"
NO_ITEMS = ("Collection", "Catalog")


class Unreadable(Exception):
    """A file or folder that cannot be read, or holds no items; the text names it."""


@dataclass(frozen=True, slots=True)
class ReadyDocument:
    """A document to publish: JSON without line breaks, and where it was read (`items.ndjson:17`)."""

    place: str
    id: str
    collection: str
    text: bytes


@dataclass(frozen=True, slots=True)
class DocumentTrouble:
    """One item that is not published, and why; pointers in the findings are into the item."""

    place: str
    id: str
    status: str  # rejected, or failed by the server's fault
    type: str
    detail: str
    findings: tuple[Finding, ...] = ()
    request: str | None = None

    def as_json(self) -> dict[str, Any]:
        findings = [finding.as_json() for finding in self.findings]
        return {"place": self.place, "id": self.id, "status": self.status, "type": self.type, "detail": self.detail,
                "findings": findings, "request": self.request}  # fmt: skip


def read(path: str, collection: str | None = None) -> Iterator[ReadyDocument | DocumentTrouble]:
    """Yield the documents of a file, of all files under a folder, or of standard input (`-`).

    `collection`: where they go, whatever they say. Unreadable where there is nothing to read.
    """
    if path == "-":
        yield from _stream(sys.stdin.buffer, "standard input", collection)
        return
    if not os.path.exists(path):
        raise Unreadable(f"{path} does not exist")
    count = 0
    for file in _files(Path(path)):
        count += 1
        try:
            with file.open("rb", buffering=CHUNK) as raw:
                name = os.fsencode(file).decode(errors="replace")  # a name is bytes, which may be no text
                yield from _stream(raw, name, collection, skip_no_items=file != Path(path))
        except OSError as error:
            raise Unreadable(f"{file} cannot be read: {error.strerror or error}") from error
    if not count:
        raise Unreadable(f"{path} holds no file with a name in {', '.join(SUFFIXES)}, or one of these with .gz")


def _files(path: Path) -> Iterator[Path]:
    """Yield the file itself, or all under a folder by name; hidden ones are left out."""
    if not path.is_dir():
        yield path
        return
    for folder, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().removesuffix(".gz").endswith(SUFFIXES):
                yield Path(folder, name)


def _stream(
    raw: BinaryIO, name: str, collection: str | None, *, skip_no_items: bool = False
) -> Iterator[ReadyDocument | DocumentTrouble]:
    line = 0
    try:
        for line, text in _documents(raw):
            entry = _entry(text, f"{name}:{line}", collection, skip_no_items)
            if entry:
                yield entry
    except (EOFError, gzip.BadGzipFile, zlib.error):
        yield _broken(f"{name}:{line}", "the gzip stream ends early or is damaged; what came before it was read")
    except _Syntax as error:
        yield _broken(f"{name}:{error.line}", f"{error.reason}; nothing after it was read from this file")


class _Syntax(Exception):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


def _broken(place: str, reason: str) -> DocumentTrouble:
    return DocumentTrouble(place, "", "rejected", MalformedJson.name, reason)


def _entry(
    text: bytes, place: str, collection: str | None, skip_no_items: bool
) -> ReadyDocument | DocumentTrouble | None:
    try:
        value = strict_json.parse(text)
    except MalformedJson as problem:
        return DocumentTrouble(place, _claimed_id(text), "rejected", problem.name, problem.detail, problem.findings)
    if not isinstance(value, dict) or value.get("type") in NO_ITEMS:
        what = f"a {value['type']}" if isinstance(value, dict) else "no JSON object"
        if skip_no_items and isinstance(value, dict):
            return None  # a static catalogue: its items are in the other files
        return DocumentTrouble(place, "", "rejected", "stac-validation", f"an Item is expected, and this is {what}")
    return entry(value, text, place, collection)


def entry(
    value: Mapping[str, Any], text: bytes | None, place: str, collection: str | None
) -> ReadyDocument | DocumentTrouble:
    """Return a document made ready to be sent; trouble where nothing says into which collection."""
    name = value["id"] if isinstance(value.get("id"), str) else ""
    target = collection or value.get("collection")
    if not isinstance(target, str) or not target:
        finding = Finding("collection", "/collection", "the item names no collection", suggestion="--collection")
        detail = "the item names no collection; say into which one it goes (--collection)"
        return DocumentTrouble(place, name, "rejected", "stac-validation", detail, (finding,))
    if text is None or b"\n" in text or b"\r" in text:
        text = orjson.dumps(value)
    return ReadyDocument(place, name, target, text)


def _claimed_id(text: bytes) -> str:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ""
    return value["id"] if isinstance(value, dict) and isinstance(value.get("id"), str) else ""


def _documents(raw: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Return each document with the number of its line."""
    plain = cast(io.BufferedReader, raw)
    if plain.peek(2)[:2] == GZIP:
        plain = cast(io.BufferedReader, io.BufferedReader(gzip.GzipFile(fileobj=plain), CHUNK))
    first, number = plain.readline(SNIFFED), 1
    while first and not first.strip():
        first, number = plain.readline(SNIFFED), number + 1
    first = first.removeprefix(codecs.BOM_UTF8)
    if _is_line(first):
        return _lines(first, number, plain)
    return _Values(chain([first], iter(lambda: plain.read(CHUNK), b"")), number).documents()


def _is_line(first: bytes) -> bool:
    """Return whether a stream that begins so has a document a line; a collection in one line is read as a whole."""
    text = first.strip(b" \t\r\n\x1e")
    if first.startswith(b"\x1e"):
        return True
    if not (first.endswith((b"\n", b"\r")) or len(first) < SNIFFED) or text[:1] + text[-1:] != b"{}":
        return False
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return first.endswith(b"\n")
    return not isinstance(value.get("features"), list)


def _lines(first: bytes, number: int, raw: BinaryIO) -> Iterator[tuple[int, bytes]]:
    line = first + raw.readline(LONGEST_LINE) if not first.endswith(b"\n") else first
    while line:
        text = line.strip(b" \t\r\n\x1e")
        if text:
            yield number, text
        while not line.endswith(b"\n") and (line := raw.readline(LONGEST_LINE)):
            pass  # the rest of a line that is too long; the server, or the parser, refuses its beginning
        line, number = raw.readline(LONGEST_LINE), number + 1


class _Values:
    """JSON texts one after the other, however they are laid out; of a FeatureCollection, each feature as it comes."""

    def __init__(self, chunks: Iterator[bytes], line: int) -> None:
        self._chunks = chunks
        self._decode: Callable[..., str] = codecs.getincrementaldecoder("utf-8")().decode
        self._read_value = json.JSONDecoder().raw_decode
        self._text, self._at, self._line, self._counted_to = "", 0, line, 0

    def documents(self) -> Iterator[tuple[int, bytes]]:
        while self._next():
            if self._text[self._at] == "{":
                yield from self._object()
            else:
                yield self._value()

    def _object(self) -> Iterator[tuple[int, bytes]]:
        """Yield an item, or the features of a collection. Members before `features` are kept until that is known."""
        line, start, is_collection = self._number(), self._at, False
        self._at += 1
        while self._expect() != "}":
            name, _ = self._json()
            self._expect(":")
            self._at += 1
            if name == "features" and self._expect() == "[":
                is_collection = True
                yield from self._features()
            else:
                self._expect()
                self._json()
            if self._expect(",}") == ",":
                self._at += 1
        self._at += 1
        if not is_collection:
            yield line, self._text[start : self._at].encode()
        self._trim()

    def _features(self) -> Iterator[tuple[int, bytes]]:
        self._at += 1
        while self._expect() != "]":
            yield self._value()
            self._trim()
            if self._expect(",]") == ",":
                self._at += 1
        self._at += 1

    def _value(self) -> tuple[int, bytes]:
        line = self._number()
        start, end = self._json()[1]
        return line, self._text[start:end].encode()

    def _json(self) -> tuple[Any, tuple[int, int]]:
        """Return the value that begins here, and its place in the text."""
        while True:
            try:
                value, end = self._read_value(self._text, self._at)
            except RecursionError:
                raise _Syntax(self._number(), "the JSON is nested too deeply") from None
            except json.JSONDecodeError as error:
                if len(self._text) - self._at < LONGEST_LINE and self._fill():
                    continue
                raise _Syntax(self._number(), f"not JSON here or in the value that begins here: {error.msg}") from None
            if end == len(self._text) and self._fill():
                continue  # a number may go on
            start, self._at = self._at, end
            return value, (start, end)

    def _expect(self, choices: str = "") -> str:
        """Return the next character that is no space, one of `wanted` if given."""
        if not self._next():
            raise _Syntax(self._number(), "the JSON ends in the middle")
        character = self._text[self._at]
        if choices and character not in choices:
            raise _Syntax(self._number(), f"{character!r} where one of {choices!r} is expected")
        return character

    def _next(self) -> bool:
        """Move to the next character that is no space; False at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n\x1e":
                self._at += 1
            if self._at < len(self._text):
                return True
            if not self._fill():
                return False

    def _fill(self) -> bool:
        """Read more text, at least as much as there is, so that a long value is not parsed again for every chunk."""
        size, parts = max(CHUNK, len(self._text) - self._at), []
        while size > 0 and (chunk := next(self._chunks, None)) is not None:
            try:
                parts.append(self._decode(chunk))
            except UnicodeDecodeError:
                raise _Syntax(self._number(), "the text is not UTF-8 here or a little later") from None
            size -= len(parts[-1])
        self._text += "".join(parts)
        return any(parts)

    def _trim(self) -> None:
        if self._at > CHUNK:
            self._number()
            self._text, self._at, self._counted_to = self._text[self._at :], 0, 0

    def _number(self) -> int:
        """Return the line on which we are."""
        self._line += self._text.count("\n", self._counted_to, self._at)
        self._counted_to = self._at
        return self._line


def entries(
    documents: Iterable[Mapping[str, Any]], collection: str | None = None
) -> Iterator[ReadyDocument | DocumentTrouble]:
    """Yield documents that a program holds, made ready; their places are `item 1` and so on."""
    for number, document in enumerate(documents, 1):
        yield entry(document, None, f"item {number}", collection)
