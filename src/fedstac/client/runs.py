"""The file of a publishing run, by which the next run goes on after Ctrl-C or a crash.

One JSON object a line, only ever appended: what is published and with which options, each accepted batch (with a short
digest of each document), each settled request, each refused item. A line that is cut off counts for nothing: its batch
is sent again, which is harmless.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from io import BufferedRandom
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout

from fedstac import settings as environment
from fedstac.client.documents import DocumentTrouble, ReadyDocument, Unreadable
from fedstac.client.publishing import Step
from fedstac.client.values import AcceptedBatch, Request

FORMAT = 1
KEPT_DAYS = 30


def place() -> Path:
    """Return the file of a new run in the user's folder, and remove files of runs that are older than KEPT_DAYS."""
    folder = environment.state_folder() / "runs"
    oldest = time.time() - KEPT_DAYS * 86400
    for path in folder.glob("*.ndjson*") if folder.is_dir() else ():
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
    return folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.ndjson"


def digest(entry: ReadyDocument) -> str:
    """Return a digest of a document and its collection: eight bytes, as text."""
    return blake2b(entry.collection.encode() + b"\0" + entry.text, digest_size=8).hexdigest()


@dataclass(slots=True)
class Run:
    """The state of a run: which documents were sent, which requests are open, which items were refused.

    `source`: where the documents are read. `options`: those of the last start, so that it goes on alike. `refused`: by
    the items' ids, or by their places in the source.
    """

    path: Path
    source: str
    collection: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    sent_digests: set[str] = field(default_factory=set)  # digests
    refusals: dict[str, dict[str, Any]] = field(default_factory=dict)
    open: dict[str, AcceptedBatch] = field(default_factory=dict)
    _options_before: dict[str, Any] | None = None
    _file: BufferedRandom | None = None
    _lock: FileLock | None = None

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read the file of a run. Unreadable if it is no such file."""
        try:
            lines = path.read_bytes().split(b"\n")
            first = json.loads(lines[0])
            if first.get("run") != FORMAT:
                raise ValueError
            run = cls(path, first["source"], first.get("collection", ""), dict(first.get("options", {})))
        except OSError as error:
            raise Unreadable(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, AttributeError):
            raise Unreadable(f"{path} is no file of a publishing run") from None
        for line in lines[1:-1]:  # what follows the last line break was cut off
            try:
                run._take(orjson.loads(line))
            except (orjson.JSONDecodeError, KeyError, TypeError):
                continue
        run._options_before = run.options
        return run

    def _take(self, line: dict[str, Any]) -> None:
        """Change the state as a line of the file says."""
        if "accepted" in line:
            self.sent_digests.update(line["digests"])
            self.open[line["accepted"]] = AcceptedBatch(line["accepted"], line["url"], len(line["digests"]))
            for name in line.get("again", ()):
                self.refusals.pop(name, None)
        elif "options" in line:
            self.options = dict(line["options"])
        elif "settled" in line:
            self.open.pop(line["settled"], None)
        elif "refused" in line:
            self.refusals[line["refused"]] = line

    # --- the rest of the documents ---

    def unsent(
        self, documents: Iterable[ReadyDocument | DocumentTrouble], *, refused_only: bool
    ) -> Iterator[ReadyDocument | DocumentTrouble | None]:
        """Yield the documents to send, and None for each that was sent before.

        `refused_only`: only documents that were refused are sent.
        """
        for document in documents:
            if refused_only:
                yield document if self._was_refused(document) else None
            elif isinstance(document, ReadyDocument) and digest(document) in self.sent_digests:
                yield None
            else:
                yield document

    def _was_refused(self, document: ReadyDocument | DocumentTrouble) -> bool:
        return document.id in self.refusals or document.place in self.refusals

    # --- progress ---

    def add_accepted(self, batch: AcceptedBatch, part: Sequence[ReadyDocument]) -> None:
        """Note that the server accepted a batch."""
        digests = [digest(entry) for entry in part]
        again = [name for entry in part for name in (entry.id, entry.place) if name in self.refusals]
        more = {"again": again} if again else {}
        self._append({"accepted": batch.id, "url": batch.url, "digests": digests, **more})

    def step(self, step: Step) -> None:
        """Note a settled request or a refused item."""
        match step:
            case Request() if step.is_final:
                self._append({"settled": step.id, "status": step.status})
            case DocumentTrouble():
                self._append({"refused": step.id or step.place, "place": step.place, "type": step.type})

    @property
    def is_complete(self) -> bool:
        """Return whether every request is settled and nothing was refused."""
        return not self.open and not self.refusals

    def _append(self, line: dict[str, Any]) -> None:
        self._take(line)
        file = self._file or self.begin()
        with self._keeping():
            file.write(orjson.dumps(line) + b"\n")
            file.flush()

    def begin(self) -> BufferedRandom:
        """Open the file for this process alone, before anything is sent.

        Unreadable if it cannot be written, or another process has it.
        """
        with self._keeping():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b")
            self._lock = FileLock(self.path.with_name(self.path.name + ".lock"))
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                file.close()
                raise Unreadable(f"another publish is using {self.path}; choose another file with --run") from None
            self._file = file
            self._write_head(file)
        return file

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Write to the file of the run. Unreadable where there is no room, or no right to do so."""
        try:
            yield
        except OSError as error:
            reason = f"the run cannot be kept in {self.path}: {error.strerror or error}; say where with --run FILE"
            raise Unreadable(reason) from error

    def _write_head(self, file: BufferedRandom) -> None:
        """Write what a new run is, or what is different when it goes on."""
        if not file.tell():
            at = datetime.now(UTC).isoformat(timespec="seconds")
            head = {"run": FORMAT, "source": self.source, "collection": self.collection, "options": self.options,
                    "at": at}  # fmt: skip
            file.write(json.dumps(head).encode() + b"\n")  # not orjson: the name of a file may be no UTF-8
        else:
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # cut off: what is appended begins a line of its own
                file.write(b"\n")
            if self.options != self._options_before:
                file.write(orjson.dumps({"options": self.options}) + b"\n")
        file.flush()

    @property
    def is_begun(self) -> bool:
        """Return whether this process has the file."""
        return self._file is not None

    def close(self, *, interrupted: bool = False) -> None:
        """Close the file, and remove it if nothing is left to do, or nothing was sent."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written was told before
                self._file.close()
            self._file = None
        if self.is_complete and not (interrupted and self.sent_digests):
            self.path.unlink(missing_ok=True)
        if self._lock is not None and self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
