"""What is on the disk of a replica node: every file below a folder in one order, and one file as it is."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedstac.domain.multihashes import Multihash
from fedstac.domain.replication.paths import MARK, PART_FOLDER
from fedstac.domain.replication.verification import DiskFile
from fedstac.replication import storage
from fedstac.replication.copying import new_digest
from fedstac.replication.transports import CopyFailed

OF_THE_FILE: Final = (
    errno.EIO,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENXIO,
)  # all else is the disk's, or ours


class DiskAway(Exception):
    """The disk does not say what is on it: it is not mounted, or this user may not read it. The text has the remedy.

    That is no reason to fetch everything again.
    """


@dataclass(frozen=True, slots=True)
class SurveyedFile:
    """A file that a walk met. `changed_at`: its last change of bytes, name or place, in seconds since the epoch."""

    path: str  # below the folder
    size: int
    changed_at: float
    is_plain: bool  # a regular file with a name that a document could have


def walk(folder: Path, *, after: str = "", without: Collection[Path] = ()) -> Iterator[SurveyedFile]:
    """Yield the files below a folder that come after a path, in the order of their folders' names and their own.

    No link is followed; one is yielded as what is not plain. Left out are files that are not whole yet, the marks of
    tiers, and the folders `without`. DiskAway where there is no folder. Of a folder, the names alone are in memory.
    """
    if not folder.is_dir():
        raise DiskAway(f"there is no folder {folder}: mount it, or change FEDSTAC_REPLICA_FOLDER or the policy's tiers")
    place = tuple(after.split("/")) if after else ()
    yield from _walk(folder, (), place, {os.path.realpath(each) for each in without})


def _walk(folder: Path, parts: tuple[str, ...], place: tuple[str, ...], without: set[str]) -> Iterator[SurveyedFile]:
    """Yield what comes after `place` below one folder; `parts` leads there."""
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except FileNotFoundError:  # it went while we walked
        return
    for name, is_folder in names:
        path = (*parts, name)
        if is_folder:
            if name == PART_FOLDER or path < place[: len(path)]:
                continue
            below = folder / name
            if without and os.path.realpath(below) in without:
                continue
            yield from _walk(below, path, place if path == place[: len(path)] else (), without)
        elif path > place and not name.startswith(MARK):
            surveyed_file = _survey(folder / name, "/".join(path))
            if surveyed_file is not None:
                yield surveyed_file


def _survey(place: Path, path: str) -> SurveyedFile | None:
    try:
        facts = place.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    is_text = path.isprintable() and path.encode(errors="surrogateescape").decode(errors="replace") == path
    shown_path = path.encode(errors="surrogateescape").decode(errors="backslashreplace")
    is_plain = stat.S_ISREG(facts.st_mode) and is_text
    return SurveyedFile(shown_path, facts.st_size, max(facts.st_mtime, facts.st_ctime), is_plain)


@dataclass(frozen=True, slots=True)
class DiskReading:
    """A file as it is, and its last change as `SurveyedFile.changed_at`; None where there is no file."""

    file: DiskFile | None
    changed_at: float = 0.0


def look(
    folder: Path, path: str, checksum: str | None, *, should_go_on: Callable[[], bool] = lambda: True
) -> DiskReading:
    """Return a file's size, and its checksum where one is given to compare with. Blocks.

    What is in its place and is no file, or has bytes that the disk does not give, has a trouble. With a checksum that
    cannot be computed here the size is all that is said. InterruptedError where `should_go_on` says no while it is
    read; DiskAway where the disk does not say how the file is.
    """
    try:
        with storage.open_place(folder, path, make=False) as place:
            fd = place.open_target()
    except FileNotFoundError:
        return DiskReading(None)
    except CopyFailed as error:
        return DiskReading(DiskFile(0, None, error.reason))
    except OSError as error:
        return DiskReading(DiskFile(0, None, _trouble(error, folder / path)))
    if fd is None:
        return DiskReading(None)
    try:
        facts = os.fstat(fd)
        changed_at = max(facts.st_mtime, facts.st_ctime)
        try:
            digest, multihash = new_digest(checksum or "")
        except CopyFailed:
            return DiskReading(DiskFile(facts.st_size), changed_at)
        buffer, size = memoryview(bytearray(storage.READ_BYTES)), 0
        while count := os.readv(fd, [buffer]):
            if not should_go_on():
                raise InterruptedError
            digest.update(buffer[:count])
            size += count
        return DiskReading(DiskFile(size, _text_of(multihash, digest.digest(), checksum or "")), changed_at)
    except InterruptedError:
        raise
    except OSError as error:
        return DiskReading(DiskFile(facts.st_size, None, _trouble(error, folder / path)), changed_at)
    finally:
        os.close(fd)


def _trouble(error: OSError, place: Path) -> str:
    """Return why the bytes of a file are not to be had. DiskAway where that is no fault of the file."""
    words = os.strerror(error.errno or errno.EIO)
    if error.errno not in OF_THE_FILE:
        raise DiskAway(f"{place} cannot be read: {words}; run this as the user of the node, with its disks mounted")
    return f"it cannot be read: {words}"


def _text_of(multihash: Multihash, digest: bytes, checksum: str) -> str:
    """Return a digest with the head that the checksum has."""
    return checksum[: len(checksum) - 2 * len(multihash.digest)] + digest.hex()


def remove(folder: Path, path: str, *, size: int, changed_at: float) -> bool:
    """Remove a file, if it is still the one of this size and this last change. Return whether it is gone. Blocks.

    No link on the way to it is followed.
    """
    try:
        with storage.open_place(folder, path, make=False) as place:
            fd = place.open_target()
            if fd is None:
                return True
            try:
                facts = os.fstat(fd)
            finally:
                os.close(fd)
            if facts.st_size != size or max(facts.st_mtime, facts.st_ctime) != changed_at:
                return False
            place.discard_target()
    except FileNotFoundError:
        return True
    except (CopyFailed, OSError):
        return False
    return True
