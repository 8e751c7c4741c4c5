"""The folder of a replica node: safe places below it, files that are not whole yet, and moving them into place.

No link below the folder is followed, so nothing that somebody plants there leads a file out of it. Each folder on the
way is opened by its name in the one above; what was checked is what is used. The folder itself may be a link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Protocol, Self, TypeVar

from fedstac.domain.replication.paths import PART_FOLDER, PathUnsafe, parts_of
from fedstac.replication.transports import CopyCause, CopyFailed

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
T = TypeVar("T")
MOST_VECTORS = 512  # chunks that are written in one call; Linux takes 1024
READ_BYTES = 1 << 20
MOST_TRIES = 100  # to open a part file while others take its folder away


class Digest(Protocol):
    """A hash function under way, as those of hashlib."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


def feed(fd: int, digest: Digest, *, should_go_on: Callable[[], bool] = lambda: True) -> int:
    """Read a file from where it stands to its end into a digest, and return how many bytes that were.

    InterruptedError where `should_go_on`, which is asked for each block, says no.
    """
    buffer = memoryview(bytearray(READ_BYTES))
    size = 0
    while count := os.readv(fd, [buffer]):
        if not should_go_on():
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        digest.update(buffer[:count])
        size += count
    return size


def free_bytes(folder: Path) -> int:
    """Return the bytes that this process may still write below a folder."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def failure_of(error: OSError, path: str) -> CopyFailed:
    """Return why the disk did not take a file. `path`: below the folder."""
    text = os.strerror(error.errno or errno.EIO)
    if error.errno in NO_SPACE:
        return CopyFailed(CopyCause.DISK_FULL, f"there is no room for {path}: {text}")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return CopyFailed(CopyCause.BAD_PATH, f"{path} cannot be stored: there is a link or a file in its way ({text})")
    return CopyFailed(CopyCause.DISK_BROKEN, f"{path} cannot be stored: {text}")


def name_failures(path: str, work: Callable[[], T]) -> T:
    """Do something on the disk. CopyFailed, which names the file, where the disk refuses."""
    try:
        return work()
    except OSError as error:
        raise failure_of(error, path) from error


class TargetPlace:
    """Where a file is to be, with its folder open. Every method blocks; OSError says what the disk refused."""

    def __init__(self, folder_fd: int, name: str, path: str) -> None:
        self._folder, self._name, self.path = folder_fd, name, path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder. Part files stay open."""
        os.close(self._folder)

    def open_target(self) -> int | None:
        """Open the file that is there under the final name; None where there is none. BAD_PATH where it is no file."""
        try:
            fd = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise CopyFailed(CopyCause.BAD_PATH, f"{self.path} is there already, and is no file") from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CopyFailed(CopyCause.BAD_PATH, f"{self.path} is there already, and is no file")
        return fd

    def discard_target(self) -> None:
        """Take the file away that is there under the final name. That is on the disk when this returns."""
        with suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder)
        os.fsync(self._folder)

    def open_part(self, name: str) -> PartFile:
        """Open the file's part, which is locked until it is closed. BUSY where another process has it."""
        for _ in range(MOST_TRIES):
            with suppress(FileExistsError):
                os.mkdir(PART_FOLDER, 0o755, dir_fd=self._folder)
            try:
                parts = os.open(PART_FOLDER, DIRECTORY, dir_fd=self._folder)
            except FileNotFoundError:  # somebody finished, and took the empty folder away
                continue
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(name, flags, 0o644, dir_fd=parts)
            except FileNotFoundError:
                os.close(parts)
                continue
            except BaseException:
                os.close(parts)
                raise
            part = PartFile(fd, parts, name, os.dup(self._folder), self._name)
            try:
                if part.lock(self.path):
                    return part
            except BaseException:
                part.close()
                raise
            part.close()
        raise CopyFailed(CopyCause.BUSY, f"{self.path} is moved by others all the time")


class PartFile:
    """A file that is not whole yet. It grows at its end only, so its size is what is there of the file.

    A thread may still work on it when somebody gives up: each method has the file for itself, and does nothing, or
    raises OSError, once it is closed.
    """

    def __init__(self, fd: int, parts_fd: int, name: str, folder_fd: int, target: str) -> None:
        self.fd = fd
        self._use = Lock()
        self._is_given_up = False
        self._parts, self._name, self._folder, self._target = parts_fd, name, folder_fd, target
        self._is_in_parts = False

    def lock(self, path: str) -> bool:
        """Lock the file for this process. False where it is not the one of its name any more; BUSY where locked."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CopyFailed(CopyCause.BUSY, f"another process copies {path}") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:  # a file system without locks
                raise
        mine = os.fstat(self.fd)
        if not stat.S_ISREG(mine.st_mode):
            raise CopyFailed(CopyCause.BAD_PATH, f"the part of {path} is no file")
        try:
            there = os.stat(self._name, dir_fd=self._parts, follow_symlinks=False)
        except FileNotFoundError:
            return False
        self._is_in_parts = (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
        return self._is_in_parts

    @property
    def size(self) -> int:
        """The bytes that are there."""
        return os.fstat(self.fd).st_size

    def append(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Write chunks, none of them empty, at the end. Nothing is written once the file is closed."""
        with self._use:
            at = 0
            while at < len(chunks) and self.fd >= 0:
                some = chunks[at : at + MOST_VECTORS]
                count = os.writev(self.fd, some)
                for chunk in some:
                    if count < len(chunk):
                        self._append_rest(memoryview(chunk)[count:])
                        count = 0
                    else:
                        count -= len(chunk)
                at += len(some)

    def _append_rest(self, rest: memoryview) -> None:
        while rest:
            rest = rest[os.write(self.fd, rest) :]

    def hash_into(self, digest: Digest) -> int:
        """Read what is there into a digest, and return how many bytes that were. The next bytes go behind them."""
        with self._in_use():
            os.lseek(self.fd, 0, os.SEEK_SET)
            return feed(self.fd, digest, should_go_on=lambda: not self._is_given_up)

    def empty(self) -> None:
        """Discard what is there, and what was noted of it."""
        with self._in_use():
            with suppress(FileNotFoundError):
                os.unlink(f"{self._name}.note", dir_fd=self._parts)
            os.ftruncate(self.fd, 0)
            os.lseek(self.fd, 0, os.SEEK_SET)

    def read_note(self) -> str:
        """Return what was noted of the bytes that are there; empty where nothing was."""
        try:
            with self._in_use():
                fd = os.open(f"{self._name}.note", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parts)
        except OSError:
            return ""
        with open(fd, encoding="utf-8", errors="replace") as file:
            return file.read(10_000)

    def write_note(self, text: str) -> None:
        """Note something of the bytes that are there."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            self._in_use(),
            open(os.open(f"{self._name}.note", flags, 0o644, dir_fd=self._parts), "w", encoding="utf-8") as file,
        ):
            file.write(text)

    def delivery_path(self, path: str) -> str:
        """Return where, below the folder, somebody else may write the file of this path."""
        return str(PurePosixPath(path).parent / PART_FOLDER / f"{self._name}.delivery")

    def take_delivery(self) -> None:
        """Take what somebody else wrote at `delivery_path` as this part."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with self._in_use():
            fd = os.open(f"{self._name}.delivery", flags, dir_fd=self._parts)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(f"{self._name}.delivery", self._name, src_dir_fd=self._parts, dst_dir_fd=self._parts)
            except BaseException:
                os.close(fd)
                raise
            os.close(self.fd)
            self.fd = fd

    def move_into_place(self) -> None:
        """Give the file its final name. It is on the disk before the name is, and the name when this returns."""
        with self._in_use():
            os.fsync(self.fd)
            os.rename(self._name, self._target, src_dir_fd=self._parts, dst_dir_fd=self._folder)
            self._is_in_parts = False
            self._clear()
            os.fsync(self._folder)

    def discard(self) -> None:
        """Take the file away."""
        with self._in_use():
            self._discard()

    def give_up(self) -> None:
        """Stop a thread that reads the file, so that `close` does not wait long. Does not block."""
        self._is_given_up = True

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Take the file for oneself. OSError(EBADF) where it is closed, or given up."""
        with self._use:
            if self.fd < 0 or self._is_given_up:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            yield

    def _discard(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._parts)
        self._is_in_parts = False
        self._clear()

    def _clear(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self._name}.note", dir_fd=self._parts)
        with suppress(OSError):  # others have files there
            os.rmdir(PART_FOLDER, dir_fd=self._folder)

    def close(self) -> None:
        """Close the file, which unlocks it. One without a byte is taken away. Waits for a thread that works on it."""
        self.give_up()
        with self._use:
            if self._is_in_parts and not self.size:
                self._discard()
            os.close(self.fd)
            self.fd = -1
            os.close(self._parts)
            os.close(self._folder)


def open_place(folder: Path, path: str, *, make: bool = True) -> TargetPlace:
    """Open where a file is to be; the folders on the way are made. CopyFailed(BAD_PATH) where that is not safe.

    `make=False`: FileNotFoundError where a folder on the way is missing.
    """
    try:
        *folders, name = parts_of(path)
    except PathUnsafe as error:
        raise CopyFailed(CopyCause.BAD_PATH, str(error)) from None
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for each in folders:
            below = _step(fd, each, make=make)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return TargetPlace(fd, name, path)


def _step(fd: int, name: str, *, make: bool) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        if not make:
            raise
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=fd)
        os.fsync(fd)  # else a crash of the machine takes the folder, and with it a file that was announced
    return os.open(name, DIRECTORY, dir_fd=fd)
