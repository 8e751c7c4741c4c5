"""Which files there are to read: those of a folder, or those of an ESGF mapfile. Nothing is opened but the mapfile.

Nothing outside the site's roots is ever named as found: links are resolved first.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from fedstac.domain.errors import Severity
from fedstac.scan.site import Site, is_below
from fedstac.scan.values import Fault, ScanFile, printable

SUFFIX: Final = ".nc"
VERSION: Final = re.compile(r"v([0-9]{8})")
DATASET: Final = re.compile(r"(?P<id>[A-Za-z0-9_.-]{1,1000})(?:#|\.v)v?(?P<version>[0-9]{8})")
SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
LONGEST_LINE: Final = 1 << 16  # bytes of a mapfile


class NoListing(ValueError):
    """What was named is neither a folder below the roots nor a mapfile; the text says why."""


def is_version(text: str) -> bool:
    """Return whether it is a date of the calendar, YYYYMMDD."""
    try:
        datetime.strptime(text, "%Y%m%d").date()  # noqa: DTZ007
    except ValueError:
        return False
    return len(text) == 8


def files(
    path: str, site: Site, version: str | None = None, *, ignore_folders: bool = False
) -> Iterator[ScanFile | Fault]:
    """Yield the files of a folder or a mapfile; `version` is that of files whose folder says none. NoListing.

    `ignore_folders`: no folder's version counts, only `version` or the mapfile's.
    """
    path = os.path.abspath(path)
    if os.path.isdir(path):
        yield from _Folder(site, version, ignore_folders=ignore_folders).files(path)
    else:
        yield from _mapfile(path, site, ignore_folders=ignore_folders)


# --- folders ---


class _Folder:
    """A walk in the order of names. Links to folders come last, and only to what the walk has not seen: `latest`
    beside `v20200101` is the same folder, and a loop has an end."""

    def __init__(self, site: Site, version: str | None, *, ignore_folders: bool) -> None:
        self._site, self._version, self._ignore_folders = site, version, ignore_folders
        self._roots = [os.path.realpath(root.folder) for root in site.roots]
        self._visited_folders: set[str] = set()
        self._links: list[str] = []

    def files(self, top: str) -> Iterator[ScanFile | Fault]:
        if not any(is_below(os.path.realpath(top), root) for root in self._roots):
            raise NoListing(f"{top} is not below a root of the site: {', '.join(self._roots)}")
        yield from self._walk(top)
        while self._links:
            link = self._links.pop(0)
            if os.path.realpath(link) not in self._visited_folders:
                yield from self._walk(link)

    def _walk(self, top: str) -> Iterator[ScanFile | Fault]:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder)
            if real in self._visited_folders:
                continue
            self._visited_folders.add(real)
            try:
                with os.scandir(folder) as entries:
                    ordered = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                yield Fault(_clean(folder), "unreadable", f"the folder cannot be read: {error.strerror}")
                continue
            inner = []
            for entry in ordered:
                if _is_left_out(entry, ordered):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    inner.append(entry.path)
                elif entry.name.endswith(SUFFIX) or (entry.is_symlink() and _is_folder(entry)):
                    yield from self._entry(entry)
            waiting += reversed(inner)

    def _entry(self, entry: os.DirEntry[str]) -> Iterator[ScanFile | Fault]:
        if not entry.is_symlink() or not _is_folder(entry):
            yield locate(
                entry.path, self._site, self._roots, fallback=self._version, ignore_folders=self._ignore_folders
            )
        elif any(is_below(os.path.realpath(entry.path), root) for root in self._roots):
            self._links.append(entry.path)
        else:
            message = "this link leads out of the site's roots, and is not followed"
            yield Fault(_clean(entry.path), "outside", message, Severity.WARNING)


def _is_left_out(entry: os.DirEntry[str], beside: Sequence[os.DirEntry[str]]) -> bool:
    """Return whether a path is not read: hidden files, as rsync's unfinished ones are, and `files` beside versions.

    Archives that esgdrs makes keep each file once, in `files`; the versions link there.
    """
    if entry.name.startswith("."):
        return True
    return entry.name == "files" and any(VERSION.fullmatch(other.name) for other in beside)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop
        return False


def _clean(path: str) -> str:
    """Return a path that may be printed and put into JSON."""
    return path.encode("utf-8", "backslashreplace").decode()


def locate(
    path: str,
    site: Site,
    roots: Sequence[str],
    *,
    fallback: str | None = None,
    version: str | None = None,
    ignore_folders: bool = False,
) -> ScanFile | Fault:
    """Return a file below one of the roots (resolved), with its version: the one given, else its folder's, else
    `fallback`.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return Fault(_clean(path), "name", "the path is not UTF-8, and so is no part of an address")
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real, follow_symlinks=False)
    except OSError as error:
        return Fault(path, "unreadable", f"it cannot be found: {error.strerror}")
    root = next((n for n, folder in enumerate(roots) if is_below(real, folder)), None)
    if root is None:
        return Fault(path, "outside", "it lies, or its link leads, outside the site's roots, and is not read")
    if not stat.S_ISREG(status.st_mode):
        return Fault(path, "unreadable", "it is no regular file")
    above = str(site.roots[root].folder)  # the path as people know it, where it can be said below the root
    is_plain = is_below(path, above) and os.path.normpath(path) == path
    local = os.path.relpath(path, above) if is_plain else os.path.relpath(real, roots[root])
    steps = () if ignore_folders else local.split("/")[:-1]
    versions = [match[1] for step in steps if (match := VERSION.fullmatch(step))]
    own_version = version or (versions[-1] if versions else fallback)
    if own_version is None:
        return Fault(path, "version", "no folder above it is a version (v20200101); say it with --version")
    if not is_version(own_version):
        return Fault(path, "version", f"its version {printable(own_version)} is no date of the calendar (YYYYMMDD)")
    if version and versions and versions[-1] != version:
        remedy = "to take the mapfile's for all, say --ignore-version-folders"
        return Fault(path, "version", f"the mapfile says version {version}, its folder v{versions[-1]}; {remedy}")
    return ScanFile(path, real, local, root, status.st_size, status.st_mtime_ns, own_version)


# --- mapfiles ---


def _mapfile(path: str, site: Site, *, ignore_folders: bool) -> Iterator[ScanFile | Fault]:
    """Yield the files of a mapfile: `dataset_id#version | path | size | name=value | …`, as esgmapfiles writes it.

    A line that begins with # is a comment.
    """
    roots = [os.path.realpath(root.folder) for root in site.roots]
    paths: set[str] = set()
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                if number == 1 and (line.startswith((b"\x89HDF", b"CDF")) or b"\0" in line):
                    raise NoListing(f"{path} is no mapfile; for one NetCDF file, give its folder")
                if line.strip() and not line.startswith(b"#"):
                    yield from _line(line, f"{path}:{number}", site, roots, paths, ignore_folders=ignore_folders)
    except OSError as error:
        raise NoListing(f"{path} cannot be read: {error.strerror}") from None


def _line(
    line: bytes, place: str, site: Site, roots: Sequence[str], paths: set[str], *, ignore_folders: bool
) -> Iterator[ScanFile | Fault]:
    text = line.decode(errors="replace").strip()
    dataset, *rest = (part.strip() for part in text.split(" | "))
    match = DATASET.fullmatch(dataset)
    if match is None or len(rest) < 2 or "\ufffd" in text:
        yield Fault(place, "mapfile", f"the line is not `dataset_id#version | path | size | …`: {printable(text, 120)}")
        return
    path, size, *pairs = rest
    extras = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    checksum = extras.get("checksum") if extras.get("checksum_type", "").upper() in ("SHA256", "SHA-256") else None
    where, whole = os.path.join(site.roots[0].folder, path), f"{match['id']}.v{match['version']}"
    if not re.fullmatch("[0-9]{1,18}", size) or (checksum is not None and not SHA256.fullmatch(checksum)):
        message = f"{place}: the size is no number of bytes, or the checksum no SHA-256"
        yield Fault(where, "mapfile", message, dataset=whole)
    elif where in paths:
        yield Fault(where, "mapfile", f"{place} names this file a second time", dataset=whole)
    else:
        paths.add(where)
        file = locate(where, site, roots, version=match["version"], ignore_folders=ignore_folders)
        if isinstance(file, Fault):
            yield replace(file, dataset=whole)
        elif int(size) != file.size:
            message = f"it has {file.size} bytes, and the mapfile says {int(size)}"
            yield Fault(where, "size", message, dataset=whole)
        else:
            yield replace(file, dataset=match["id"], checksum=checksum.lower() if checksum else None)
