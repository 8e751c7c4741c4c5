"""A publishing run kept in a file, so that after Ctrl-C or a crash the next one goes on where it stopped.

One JSON object a line, only ever appended: what is published and with which options, each batch that was accepted (with
a short digest of each document), each request that is settled, each item that was refused. A line that is cut off is as
if it were not there: its batch is sent again, which is harmless.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from io import BufferedRandom
from pathlib import Path
from typing import Any

import orjson

from fedstac.client.documents import Entry, Trouble, Unreadable
from fedstac.client.publishing import Step
from fedstac.client.values import Request, Submitted

FORMAT = 1
KEPT_DAYS = 30


def place() -> Path:
    """Where a run is kept if nobody says where. Files of runs that nobody went on with for long are let go."""
    base = os.environ.get("XDG_STATE_HOME", "")
    folder = (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "fedstac" / "runs"
    oldest = time.time() - KEPT_DAYS * 86400
    for path in folder.glob("*.ndjson") if folder.is_dir() else ():
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
    return folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.ndjson"


def digest(entry: Entry) -> str:
    """Eight bytes of a document and where it goes, as text."""
    return blake2b(entry.collection.encode() + b"\0" + entry.text, digest_size=8).hexdigest()


@dataclass(slots=True)
class Run:
    """What a run has come to. `source` is where its documents are read; `refused` its items by id, else by place.

    `options`: those that it was started with, so that it goes on alike; the last ones that were given count.
    """

    path: Path
    source: str
    collection: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)  # digests
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)
    open: dict[str, Submitted] = field(default_factory=dict)
    _options_before: dict[str, Any] | None = None
    _file: BufferedRandom | None = None

    @classmethod
    def read(cls, path: Path) -> Run:
        """A run that was kept. Unreadable where the file is none."""
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
            except (orjson.JSONDecodeError, KeyError):
                continue
        run._options_before = run.options
        return run

    def _take(self, said: dict[str, Any]) -> None:
        if "accepted" in said:
            self.sent.update(said["digests"])
            self.open[said["accepted"]] = Submitted(said["accepted"], said["url"], len(said["digests"]))
            for name in said.get("again", ()):
                self.refused.pop(name, None)
        elif "options" in said:
            self.options = dict(said["options"])
        elif "settled" in said:
            self.open.pop(said["settled"], None)
        elif "refused" in said:
            self.refused[said["refused"]] = said

    # --- what is left ---

    def left(self, documents: Iterable[Entry | Trouble], *, refused_only: bool) -> Iterator[Entry | Trouble | None]:
        """What is to be sent; None for what was sent before. `refused_only`: nothing but what was refused."""
        for document in documents:
            if refused_only:
                yield document if self._was_refused(document) else None
            elif isinstance(document, Entry) and digest(document) in self.sent:
                yield None
            else:
                yield document

    def _was_refused(self, document: Entry | Trouble) -> bool:
        return document.id in self.refused or document.place in self.refused

    # --- what has come about ---

    def accepted(self, submitted: Submitted, part: Sequence[Entry]) -> None:
        digests = [digest(entry) for entry in part]
        again = [name for entry in part for name in (entry.id, entry.place) if name in self.refused]
        more = {"again": again} if again else {}
        self._append({"accepted": submitted.id, "url": submitted.url, "digests": digests, **more})

    def step(self, step: Step) -> None:
        """Keeps what a step of the run says for good."""
        match step:
            case Request() if step.is_final:
                self._append({"settled": step.id, "status": step.status})
            case Trouble():
                self._append({"refused": step.id or step.place, "place": step.place, "type": step.type})

    @property
    def is_complete(self) -> bool:
        """Whether nothing of what was read is left to go on with."""
        return not self.open and not self.refused

    def _append(self, said: dict[str, Any]) -> None:
        self._take(said)
        file = self._file or self.begin()
        file.write(orjson.dumps(said) + b"\n")
        file.flush()

    def begin(self) -> BufferedRandom:
        """Takes the file for this process alone, before anything is sent.

        Unreadable where it cannot be kept, or another process has it.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b")
        except OSError as error:
            reason = f"the run cannot be kept in {self.path}: {error.strerror or error}; say where with --run FILE"
            raise Unreadable(reason) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Unreadable(f"another publish is using {self.path}; choose another file with --run") from None
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
        self._file = file
        return file

    def close(self, *, interrupted: bool = False) -> None:
        """Lets the file go; where nothing is left to do, or nothing was done, there is none any more."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.is_complete and not (interrupted and self.sent):
            self.path.unlink(missing_ok=True)
