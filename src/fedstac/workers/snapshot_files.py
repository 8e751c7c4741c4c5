"""Where the files of a snapshot are: a folder, or an address that the operator gave. Each part is checked."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import httpx

from fedstac.geoparquet import manifest as manifests
from fedstac.geoparquet.manifest import LARGEST_MANIFEST, Manifest, SnapshotBroken, SnapshotPart
from fedstac.messaging.sources.addresses import SourceAddress

ATTEMPTS: Final = 6
PAUSE_SECONDS: Final = 0.5  # before the second attempt; each pause is twice the one before
TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)


class SnapshotAway(Exception):
    """The files of a snapshot cannot be fetched now; the text says what answered."""


class SnapshotBusy(Exception):
    """Another process writes a snapshot into the folder; the text names it."""


class OtherOrigin(Exception):
    """The snapshot is of a node that this one cannot start from; the text names it."""


class SnapshotFiles(Protocol):
    """The files of one snapshot."""

    async def manifest(self) -> Manifest:
        """Return the manifest. SnapshotBroken where it is none, SnapshotAway where it cannot be had."""
        ...

    async def fetch(self, part: SnapshotPart) -> Path:
        """Return a file that is the part. SnapshotBroken where what is there is another, SnapshotAway as above."""
        ...

    def release(self, path: Path) -> None:
        """Give a file back that `fetch` returned."""
        ...


class FolderFiles:
    """A snapshot in a folder of this machine."""

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest

    async def manifest(self) -> Manifest:
        try:
            with self._manifest.open("rb") as file:
                return manifests.read(file.read(LARGEST_MANIFEST + 1))
        except OSError as error:
            raise SnapshotAway(f"{self._manifest} cannot be read: {error.strerror}") from error

    async def fetch(self, part: SnapshotPart) -> Path:
        path = self._manifest.parent / part.name
        await asyncio.to_thread(manifests.check, path, part)
        return path

    def release(self, path: Path) -> None:
        pass


class HttpFiles:
    """A snapshot at an address: a node's `GET /snapshot?format=geoparquet`, or a manifest.json with its parts beside.

    Redirections are not followed: the token is not for somebody else.
    """

    def __init__(self, address: httpx.URL, client: httpx.AsyncClient, folder: Path) -> None:
        self._address, self._client, self._folder = address, client, folder

    async def manifest(self) -> Manifest:
        path = self._folder / manifests.NAME
        path.unlink(missing_ok=True)
        await self._download(self._address, path, LARGEST_MANIFEST)
        return manifests.read(path.read_bytes())

    async def fetch(self, part: SnapshotPart) -> Path:
        path = self._folder / part.name
        path.unlink(missing_ok=True)
        await self._download(self._address_of(part), path, part.size)
        await asyncio.to_thread(manifests.check, path, part)
        return path

    def release(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _address_of(self, part: SnapshotPart) -> httpx.URL:
        path = self._address.path
        folder = path.rpartition("/")[0] if path.endswith(f"/{manifests.NAME}") else f"{path.rstrip('/')}/parts"
        return self._address.copy_with(path=f"{folder}/{part.name}", query=None)

    async def _download(self, address: httpx.URL, path: Path, most: int) -> None:
        """Fetch a file of at most so many bytes; go on where an earlier attempt ended. SnapshotAway in the end."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._download_rest(address, path, most)
            except (httpx.HTTPError, _NotNow) as error:
                if attempt == ATTEMPTS:
                    raise SnapshotAway(f"{address}: {str(error) or type(error).__name__}") from error
                await asyncio.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
            else:
                return

    async def _download_rest(self, address: httpx.URL, path: Path, most: int) -> None:
        size = _size_of(path)
        headers = {"Range": f"bytes={size}-"} if size else {}
        async with self._client.stream("GET", address, headers=headers) as answer:
            if answer.status_code in (408, 429) or answer.status_code >= 500:
                raise _NotNow(f"it answered {answer.status_code}")
            if answer.status_code not in (200, 206):
                raise SnapshotAway(f"{address} answered {answer.status_code}; see to the address and the token")
            is_rest = answer.status_code == 206 and answer.headers.get("content-range", "").startswith(f"bytes {size}-")
            size = size if is_rest else 0
            with path.open("ab" if is_rest else "wb") as file:
                async for piece in answer.aiter_bytes():
                    size += len(piece)
                    if size > most:
                        raise SnapshotBroken(f"{path.name} has more than the {most} bytes that it may have")
                    await asyncio.to_thread(file.write, piece)


class _NotNow(Exception):
    """The server cannot answer just now."""


@asynccontextmanager
async def open_files(text: str, sources: Sequence[SourceAddress]) -> AsyncIterator[SnapshotFiles]:
    """Open the files that an operator names by a folder, a manifest or an address.

    The token of a source goes to an address at that source's own scheme, host and port, and nowhere else.
    """
    if not text.startswith(("http://", "https://")):
        yield FolderFiles(_manifest_at(Path(text)))
        return
    address = httpx.URL(text)
    tokens = [
        source.token for source in sources if source.token and _is_same_server(httpx.URL(source.address), address)
    ]
    headers = {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}
    with tempfile.TemporaryDirectory(prefix="fedstac-snapshot-") as folder:
        async with httpx.AsyncClient(timeout=TIMEOUT, headers=headers, trust_env=False) as client:
            yield HttpFiles(address, client, Path(folder))


def _is_same_server(one: httpx.URL, other: httpx.URL) -> bool:
    defaults = {"http": 80, "https": 443}
    return (one.scheme, one.host, one.port or defaults.get(one.scheme)) == (
        other.scheme, other.host, other.port or defaults.get(other.scheme)
    )  # fmt: skip


def _manifest_at(path: Path) -> Path:
    return path / manifests.NAME if path.is_dir() else path


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
