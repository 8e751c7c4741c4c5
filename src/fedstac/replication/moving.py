"""Files that leave their place: deleted, or moved to another folder. A repeat is harmless.

No link below a folder is followed: each folder on the way is opened by its name in the one above.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedstac.domain.replication.paths import PART_FOLDER, parts_of

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
COPIED_BYTES = 4 << 20
STAGED = ".moving"  # behind the name of a copy that has not its place yet
SHA2_256 = "1220"  # in front of such a checksum


def delete(folder: Path, path: str, checksum: str | None) -> None:
    """Delete a file below a folder, its part, and the folders that are empty then."""
    with _opened(folder, path, make=False) as place:
        if place is None:
            return
        fd, name = place
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)
        _delete_parts(fd, name, checksum)
        os.fsync(fd)
    _prune(folder, path)


def is_there(folder: Path, path: str) -> bool:
    """Return whether there is a file, or anything else, at a place below a folder."""
    with _opened(folder, path, make=False) as place:
        return place is not None and _has(*place)


class OtherFileSystem(Exception):
    """The folders are on different file systems: the file has to be copied first (`stage`)."""


class WrongContent(Exception):
    """A file is not what it was when it was verified; the text names it."""


def move(folder: Path, path: str, checksum: str | None, *, to: Path, keeps: bool = False) -> bool:
    """Move a file to the same path below another folder. Return False where it is in neither. `keeps`: it stays, too.

    A file that is there already is replaced: it is the very file, or none that anybody verified. OtherFileSystem where
    no copy of it is staged there.
    """
    with _opened(folder, path, make=False) as source, _opened(to, path, make=True) as target:
        assert target is not None
        target_fd, name = target
        if source is None or not _has(source[0], name):
            return _has(target_fd, name)
        source_fd = source[0]
        try:
            if keeps:
                with suppress(FileExistsError):
                    os.link(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
            else:
                os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP) or (
                error.errno == errno.EPERM and not keeps
            ):
                raise
            _take_staged(source_fd, target_fd, name)
            if not keeps:
                os.unlink(name, dir_fd=source_fd)
        _delete_parts(source_fd, name, checksum)
        os.fsync(target_fd)
        os.fsync(source_fd)
    _prune(folder, path)
    return True


def stage(folder: Path, path: str, checksum: str | None, *, to: Path) -> None:
    """Copy a file to another file system, beside where it will be. WrongContent where its checksum is another one."""
    with _opened(folder, path, make=False) as source, _opened(to, path, make=True) as target:
        assert target is not None
        if source is None or not _has(*source):
            return
        with suppress(FileExistsError):
            os.mkdir(PART_FOLDER, 0o755, dir_fd=target[0])
        parts = os.open(PART_FOLDER, DIRECTORY, dir_fd=target[0])
        try:
            digest = _copy(source, parts)
            if checksum is not None and checksum.startswith(SHA2_256) and checksum != SHA2_256 + digest:
                os.unlink(source[1] + STAGED, dir_fd=parts)
                raise WrongContent(f"{path} is not what it was: its sha-256 is {digest}")
        finally:
            os.close(parts)


def _copy(source: tuple[int, str], parts: int) -> str:
    """Copy a file under the name of a staged one, and return its sha-256 in hex."""
    fd, name = source
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    digest = hashlib.sha256()
    with (
        open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd), "rb") as reader,
        open(os.open(name + STAGED, flags, 0o644, dir_fd=parts), "wb") as writer,
    ):
        while block := reader.read(COPIED_BYTES):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _take_staged(source_fd: int, target_fd: int, name: str) -> None:
    """Give a staged copy its name. OtherFileSystem where there is none, or one of another size."""
    size = os.stat(name, dir_fd=source_fd, follow_symlinks=False).st_size
    try:
        parts = os.open(PART_FOLDER, DIRECTORY, dir_fd=target_fd)
    except FileNotFoundError:
        raise OtherFileSystem from None
    try:
        if os.stat(name + STAGED, dir_fd=parts, follow_symlinks=False).st_size != size:
            raise OtherFileSystem
        os.rename(name + STAGED, name, src_dir_fd=parts, dst_dir_fd=target_fd)
    except FileNotFoundError:
        raise OtherFileSystem from None
    finally:
        os.close(parts)
    with suppress(OSError):  # others have files there
        os.rmdir(PART_FOLDER, dir_fd=target_fd)


@contextmanager
def _opened(folder: Path, path: str, *, make: bool) -> Iterator[tuple[int, str] | None]:
    """Open the folder that a file is in, and give it with the file's name. None where it is missing and not to be made.

    PathUnsafe or OSError where the path leads out, or through a link.
    """
    *folders, name = parts_of(path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for each in folders:
            try:
                below = os.open(each, DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                if not make:
                    yield None
                    return
                with suppress(FileExistsError):
                    os.mkdir(each, 0o755, dir_fd=fd)
                    os.fsync(fd)
                below = os.open(each, DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)


def _has(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _delete_parts(fd: int, name: str, checksum: str | None) -> None:
    """Delete what is there of a file that is not whole: its part, and a copy that a move staged and did not take."""
    names = [name + STAGED]
    if checksum is not None and "/" not in checksum and "\0" not in checksum:
        names += [checksum, f"{checksum}.note", f"{checksum}.delivery", f"{checksum}.delivery.task"]
    try:
        parts = os.open(PART_FOLDER, DIRECTORY, dir_fd=fd)
    except OSError:  # there is none
        return
    try:
        for each in names:
            with suppress(OSError):
                os.unlink(each, dir_fd=parts)
    finally:
        os.close(parts)
    with suppress(OSError):  # others have files there
        os.rmdir(PART_FOLDER, dir_fd=fd)


def _prune(folder: Path, path: str) -> None:
    """Remove the folders of a path that are empty, the deepest first."""
    folders = parts_of(path)[:-1]
    for depth in range(len(folders), 0, -1):
        with _opened(folder, "/".join(folders[:depth]), make=False) as place:
            if place is None:
                continue
            try:
                os.rmdir(place[1], dir_fd=place[0])
            except OSError:  # others have files there
                return
