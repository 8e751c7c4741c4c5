"""What others publish, as bytes in memory: a folder or a tar archive, read within bounds and refused beyond them.

Nothing is written to disk, no link is followed, and no name from an archive is ever used as a path.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from fedstac.domain import strict_json
from fedstac.domain.errors import MalformedJson

MOST_FILES: Final = 50_000  # the WCRP universe has 7 000
MOST_MEMBERS: Final = 200_000  # of an archive, whatever they are
MOST_BYTES: Final = 16 << 20  # of one file
MOST_TOGETHER: Final = 256 << 20
MOST_YAML: Final = 1 << 20
MOST_DEPTH: Final = 16  # of JSON and YAML
READ: Final = frozenset((".json", ".jsonld", ".yaml", ".yml"))
ARCHIVES: Final = (".tar.gz", ".tgz", ".tar")
PIECE: Final = 1 << 20
KINDS: Final[Mapping[type, str]] = {dict: "an object", list: "a list", str: "a string"}


class VocabularyRefused(ValueError):
    """The source is not one that a snapshot can be made of: the text names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Files:
    """The JSON and YAML files of a source, by their path in it (`activity/cmip.json`)."""

    name: str  # where they came from
    content: Mapping[str, bytes]

    def json(self, path: str) -> Any:
        """Raise VocabularyRefused if it is no JSON, has keys twice, or is nested too deeply."""
        try:
            return strict_json.parse(self.content[path], max_depth=MOST_DEPTH)
        except MalformedJson as error:
            raise VocabularyRefused(f"{self.name}: {path}: {error}; have it repaired where it was published") from error

    def object(self, path: str) -> dict[str, Any]:
        content: dict[str, Any] = expect(self.json(path), dict, f"{self.name}: {path}")
        return content

    def yaml(self, path: str) -> Any:
        """Raise VocabularyRefused if it is no YAML, has keys twice, anchors, tags, or is nested too deeply."""
        return _yaml(self.content[path], f"{self.name}: {path}")

    def within(self, folder: str) -> Iterator[str]:
        """Return the paths of the files in a folder, sorted."""
        return iter(sorted(path for path in self.content if path.rpartition("/")[0] == folder))

    def folders(self) -> list[str]:
        """Return the folders at the top, sorted."""
        return sorted({path.partition("/")[0] for path in self.content if "/" in path})


def expect(value: object, kind: type, place: str) -> Any:
    """Return the value, if it is of that kind; VocabularyRefused otherwise."""
    if type(value) is not kind:
        kind_name = KINDS.get(kind, kind.__name__)
        raise VocabularyRefused(
            f"{place} has to be {kind_name}, and is {str(value)[:60]!r}; is it the layout of this project?"
        )
    return value


def read(path: Path) -> Files:
    """Return the files of a folder or archive, or one file. VocabularyRefused if it is none, or more than may be."""
    if path.is_dir():
        return Files(str(path), _folder(path))
    if path.name.endswith(ARCHIVES) and path.is_file():
        return Files(str(path), _archive(path))
    if path.suffix in READ and path.is_file():
        content = _LimitedContent(str(path.parent))
        content.allow(path.name, path.stat().st_size)
        return Files(str(path.parent), {path.name: path.read_bytes()})
    raise VocabularyRefused(
        f"{path} is no folder and no archive ({', '.join(ARCHIVES)}); name what the project publishes"
    )


class _LimitedContent:
    """Files as they are gathered; refuses what is too much."""

    def __init__(self, name: str) -> None:
        self._name, self._bytes = name, 0
        self.files: dict[str, bytes] = {}

    def allow(self, path: str, size: int) -> None:
        """Count a file before it is read. VocabularyRefused if it is too much."""
        self._bytes += size
        if size > MOST_BYTES:
            raise VocabularyRefused(f"{self._name}: {path} has {size} bytes; {MOST_BYTES} are the most: leave it out")
        if self._bytes > MOST_TOGETHER or len(self.files) >= MOST_FILES:
            most = f"{MOST_FILES} files of {MOST_TOGETHER} bytes together"
            raise VocabularyRefused(f"{self._name} has more than {most}; name the folder of one vocabulary")

    def add(self, path: str, raw: bytes) -> None:
        if path in self.files:
            raise VocabularyRefused(f"{self._name}: {path} is there twice; take the archive from its publisher again")
        self.files[path] = raw


def _folder(root: Path) -> dict[str, bytes]:
    content = _LimitedContent(str(root))
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts) or path.suffix not in READ:
            continue
        if path.is_symlink() or any((root / Path(*parts[:n])).is_symlink() for n in range(1, len(parts))):
            raise VocabularyRefused(f"{path} is a link, and links are not followed; put the file itself there")
        if path.is_file():
            content.allow("/".join(parts), path.stat().st_size)
            content.add("/".join(parts), path.read_bytes())
    return content.files


class _Stream:
    """What a file unpacks to, as long as it is not too much: sizes in an archive's headers are not believed."""

    def __init__(self, packed: IO[bytes] | gzip.GzipFile, name: str) -> None:
        self._packed, self._name, self._size = packed, name, 0

    def read(self, size: int = -1) -> bytes:
        piece = self._packed.read(min(size, PIECE) if size >= 0 else PIECE)
        self._size += len(piece)
        if self._size > MOST_TOGETHER:
            raise VocabularyRefused(f"{self._name} unpacks to more than {MOST_TOGETHER} bytes; do not use this archive")
        return piece


def _as_file(stream: _Stream) -> Any:
    """Return the stream as a file: tarfile needs no more than its `read`."""
    return stream


def _archive(path: Path) -> dict[str, bytes]:
    limited, members = _LimitedContent(str(path)), 0
    try:
        with (
            path.open("rb") if path.suffix == ".tar" else gzip.open(path, "rb") as unpacked,
            tarfile.open(fileobj=_as_file(_Stream(unpacked, str(path))), mode="r|", bufsize=PIECE) as archive,
        ):
            for member in archive:
                members += 1
                if members > MOST_MEMBERS:
                    raise VocabularyRefused(f"{path} has more than {MOST_MEMBERS} members; name that of one vocabulary")
                name = _safe(member, path)
                if name is not None:
                    limited.allow(name, member.size)
                    content = archive.extractfile(member)
                    limited.add(name, content.read(MOST_BYTES) if content else b"")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise VocabularyRefused(f"{path} is no sound archive: {error}; take it from its publisher again") from error
    return _below_one_folder(limited.files)


def _safe(member: tarfile.TarInfo, path: Path) -> str | None:
    """Return the member's name, if it is to be read; VocabularyRefused if archives like that are made to harm."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise VocabularyRefused(
            f"{path}: the member {member.name[:80]!r} leads out of the archive; do not use this archive"
        )
    if member.isdir():
        return None
    if not member.isreg():
        raise VocabularyRefused(f"{path}: the member {member.name[:80]!r} is a link or device; do not use this archive")
    hidden = any(part.startswith(".") and part != "." for part in name.parts)
    return None if hidden or name.suffix not in READ else str(name)


def _below_one_folder(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files without the folder that holds everything in an archive."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in files}
    if len(tops) != 1 or "" in tops:
        return files
    return {name.partition("/")[2]: raw for name, raw in files.items()}


def _yaml(raw: bytes, place: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise VocabularyRefused(f"{place} is YAML; to read it: pip install 'fedstac[vocab]'") from None

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            mapping = super().construct_mapping(node, deep=deep)
            if len(mapping) != len(node.value):
                raise VocabularyRefused(
                    f"{place}: line {node.start_mark.line + 1}: a key is there twice; keep one of them"
                )
            return mapping

    if len(raw) > MOST_YAML:
        raise VocabularyRefused(f"{place} has {len(raw)} bytes; {MOST_YAML} are the most")
    try:
        depth = 0  # the events come before anything is made of them
        for event in yaml.parse(raw, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            _allow(event, depth, f"{place}: line {event.start_mark.line + 1 if event.start_mark else 0}")
        return yaml.load(raw, Loader=Loader)  # noqa: S506  (a safe loader, and a stricter one)
    except VocabularyRefused:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise VocabularyRefused(f"{place} is no YAML: {' '.join(str(error).split())[:200]}") from error


def _allow(event: Any, depth: int, place: str) -> None:
    """Refuse anchors, which multiply content, tags, and depth."""
    if getattr(event, "anchor", None) or getattr(event, "tag", None):
        raise VocabularyRefused(f"{place} has an anchor, an alias or a tag; write out what it stands for")
    if depth > MOST_DEPTH:
        raise VocabularyRefused(f"{place} is nested deeper than {MOST_DEPTH}")
