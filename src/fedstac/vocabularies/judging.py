"""Judging events: each is read, and its document judged with the very vocabulary that it was published under.

A consumer that is far behind has that done by a process beside its own (`JudgeProcess`): by the same code, with the
same result. That process ends when it is idle or its parent has gone, and is started again when it is needed.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import select
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import orjson

from fedstac.domain import events
from fedstac.domain.errors import BadRequest, Finding, errors_in
from fedstac.domain.events import Cursor, DatasetEvent, Event, VocabularyName
from fedstac.domain.model import Draft, SearchCopy
from fedstac.domain.validation import is_fixed
from fedstac.domain.vocabulary import Vocabulary
from fedstac.runtime.capacity import tame_allocator
from fedstac.runtime.wakeup import Backoff
from fedstac.vocabularies.checker import VocabularyChecker, bare_checker
from fedstac.vocabularies.registry import Snapshot, snapshot_of

IDLE_SECONDS: Final = 30.0  # without a page, after which the process ends
END_SECONDS: Final = 2.0  # that it has to end, before it is killed
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a process that was lost is started again
LENGTH_BYTES: Final = 8  # in front of each message
CODE: Final = "from fedstac.vocabularies.judging import main; main()"


@dataclass(frozen=True, slots=True)
class Objection:
    """Why an event cannot be applied. trace: of a fault of ours, for the log."""

    reason: str
    trace: str | None = None


class RulesFailed(Exception):
    """The rules raise an error on a document."""


class JudgeLost(Exception):
    """The process that judges ended, or could not be started."""


class EventBatch(NamedTuple):
    """Events of one origin, and the vocabularies that cannot be had, with the reason."""

    origin: str
    events: Sequence[Mapping[str, Any]]
    absences: Mapping[VocabularyName, str]


def judge(checker: VocabularyChecker, batch: EventBatch) -> list[Event | Objection]:
    """Return what each event is, in their order; or why it cannot be read, or which rule it contradicts.

    The vocabularies that events name are at hand, but for the absences.
    """
    return [_judge_one(checker, event, batch) for event in batch.events]


def _judge_one(checker: VocabularyChecker, raw: Mapping[str, Any], batch: EventBatch) -> Event | Objection:
    try:
        return _read(checker, raw, batch)
    except BadRequest as error:
        return Objection(error.detail)
    except RulesFailed as error:
        return Objection(str(error), traceback.format_exc())
    except Exception as error:  # one event's own: nothing but this event is read here
        return Objection(f"this node cannot read it: {error!r}"[:300], traceback.format_exc())


def _read(checker: VocabularyChecker, raw: Mapping[str, Any], batch: EventBatch) -> Event:
    name = events.vocabulary_named(raw)
    if name is not None and name in batch.absences:
        raise BadRequest(batch.absences[name])
    vocabulary = checker.vocabularies.at(name.project, name.version) if name else None
    event = events.read(raw, vocabulary)
    if isinstance(event, DatasetEvent) and event.draft is not None:
        findings = _findings(checker, raw["data"]["document"], event.record.collection, vocabulary)
        if findings and (errors := _unexcused(findings, event.record.cv_excused)):
            where = errors[0].pointer or "the document"
            rules = f"{name.project} {name.version}" if name else "what every item has to be"
            raise BadRequest(f"it contradicts {rules}: {where}: {errors[0].message}")
    return event


def _findings(
    checker: VocabularyChecker, document: object, collection: str, vocabulary: Vocabulary | None
) -> tuple[Finding, ...]:
    """Check a document as everywhere. One that the rules fail on is parked too, and does not block the others."""
    try:
        return checker.lasting(document, collection, vocabulary)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise RulesFailed(f"the rules here fail on it: {error!r}"[:300]) from error


def _unexcused(findings: Sequence[Finding], excused: str | None) -> list[Finding]:
    """Return the errors less the excused ones. What is fixed is excused for nobody: no publishing node takes it."""
    excuses = {(rule, place) for rule, place in orjson.loads(excused or "[]")}
    return [
        finding
        for finding in errors_in(findings)
        if is_fixed(finding) or (finding.rule, finding.pointer) not in excuses
    ]


# --- the process beside ---


class JudgeProcess:
    """Judges batches in a process beside this one, one after the other. Threads share it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._vocabulary_keys: set[tuple[str, str, str]] = set()  # vocabularies that the child has
        self._lock = threading.Lock()
        self._pauses = Backoff(least=FIRST_PAUSE, most=LONGEST_PAUSE)
        self._start_at = 0.0  # not before; by time.monotonic
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The id of the process; None where there is none."""
        child = self._child
        return child.pid if child is not None else None

    def is_ready(self) -> bool:
        """Tell whether a batch can be judged there now: while it judges another one, none can.

        The process is started where it is not, if it is of any use.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._child is not None and self._child.poll() is not None:  # it was idle, or was killed
                self._drop(self._child)
            if self._child is None:
                if self._is_closed or len(os.sched_getaffinity(0)) < 2 or time.monotonic() < self._start_at:
                    return False
                self._start_at = time.monotonic() + self._pauses.pause()
                with suppress(OSError):  # no memory, or no processes: then it is not there
                    self._child = _start()
            elif not self._is_ready:
                self._is_ready = self._has_said_so(self._child)
            return self._is_ready
        finally:
            self._lock.release()

    def judge(self, batch: EventBatch, snapshots: Sequence[Snapshot]) -> list[Event | Objection]:
        """Return what `judge` returns. JudgeLost where the process ends meanwhile.

        snapshots: the vocabularies that the events name, and that are at hand. Call it in a thread.
        """
        with self._lock:
            child = self._child
            if not self._is_ready or child is None or child.stdin is None or child.stdout is None:
                raise JudgeLost("the process that judges is not there")  # or another one is, which has not begun yet
            keys = {(each.project, each.version, each.digest): each for each in snapshots}
            try:
                new = [each.read() for key, each in keys.items() if key not in self._vocabulary_keys]
                texts = orjson.dumps(batch.events)
            except (OSError, orjson.JSONEncodeError) as error:  # a file has gone; an event is nested too deeply
                raise JudgeLost(f"the events cannot be sent to it: {error}") from error
            try:
                _send(child.stdin, (batch.origin, texts, dict(batch.absences), new))
                judgements: list[Event | Objection] = _receive(child.stdout)
                if len(judgements) != len(batch.events):
                    raise ValueError(f"{len(judgements)} judgements of {len(batch.events)} events")
            except Exception as error:  # whatever it is: what it says next must not be taken for an answer
                self._drop(child)
                raise JudgeLost(f"the process that judges does not answer: {error!r}"[:300]) from error
            self._vocabulary_keys |= keys.keys()
            self._pauses.reset()
            return judgements

    def close(self) -> None:
        """End the process, and start none any more."""
        self._is_closed = True
        if (child := self._child) is not None:
            child.terminate()  # a thread that waits for its answer goes on
        with self._lock:
            if self._child is not None:
                self._drop(self._child)

    def _has_said_so(self, child: subprocess.Popen[bytes]) -> bool:
        """Tell whether a process has said that it is ready; forget one that could not start."""
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], 0)[0]:
            return False
        try:
            _receive(child.stdout)
        except (EOFError, ValueError, pickle.UnpicklingError):
            self._drop(child)
            return False
        return True

    def _drop(self, child: subprocess.Popen[bytes]) -> None:
        if self._child is child:
            self._child, self._is_ready, self._vocabulary_keys = None, False, set()
            _end(child)


def command() -> tuple[str, ...]:
    """Return what starts a process that judges."""
    from fedstac.settings import folder  # only the parent: it takes a third of a start

    # -P: nothing is imported from the folder in which the process runs
    return (sys.executable, "-P", "-c", CODE, str(folder("extensions")))


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)


def _end(child: subprocess.Popen[bytes]) -> None:
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _send(stream: IO[bytes], message: object) -> None:
    data = io.BytesIO()
    pickler = pickle.Pickler(data, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _reducers()
    pickler.dump(message)
    stream.write(data.tell().to_bytes(LENGTH_BYTES))
    stream.write(data.getbuffer())
    stream.flush()


@cache
def _reducers() -> dict[type, Callable[[Any], tuple[type, tuple[object, ...]]]]:
    """Return how values are written that have many fields: pickle's own way with them takes three times as long."""
    return {kind: _reducer(kind) for kind in (DatasetEvent, Draft, SearchCopy, Cursor)}


def _reducer(kind: type) -> Callable[[Any], tuple[type, tuple[object, ...]]]:
    values = attrgetter(*(each.name for each in fields(kind)))
    return lambda value: (kind, values(value))


def _receive(stream: IO[bytes]) -> Any:
    """Return the next message. EOFError where the other side has gone."""
    size = int.from_bytes(_exactly(stream, LENGTH_BYTES))
    return pickle.loads(_exactly(stream, size))  # noqa: S301 - of our own process, by a pipe that nobody else has


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the other side has gone")
    return data


def _serve(requests: IO[bytes], answers: IO[bytes], checker: VocabularyChecker) -> None:
    """Answer requests until there is none for IDLE_SECONDS, or the parent has gone."""
    _send(answers, None)  # ready
    while select.select([requests], [], [], IDLE_SECONDS)[0]:
        try:
            origin, texts, absences, snapshots = _receive(requests)
        except EOFError:
            return
        for raw in snapshots:
            checker.vocabularies.install(snapshot_of(raw))
        _send(answers, judge(checker, EventBatch(origin, orjson.loads(texts), absences)))


def main() -> None:
    """Judge for the parent: requests come by standard input, answers go to what standard output was.

    The argument is the folder of the extensions.
    """
    tame_allocator()
    gc.set_threshold(100_000, 20, 20)  # as every process of a node begins
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no answer
    with suppress(BrokenPipeError):  # the parent has gone
        _serve(sys.stdin.buffer, answers, bare_checker(Path(sys.argv[1])))
