"""Files by Globus: a task of Globus writes a file to this node's collection, and is waited for.

The task's submission is noted beside the file before it is made, and Globus takes a submission once. So a process that
ends, and is started again, waits for the same task. What arrived is verified from the disk, as every file is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from fedstac.replication.addresses import SourceUrl
from fedstac.replication.transports import CopyCause, CopyFailed, in_thread

if TYPE_CHECKING:
    from globus_sdk import TransferClient

POLL_SECONDS: Final = 10.0
LONGEST_NOTE: Final = 100
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GlobusIdentity:
    """This node at Globus: the collection whose root is `folder`, and the client that may write to it."""

    collection: str
    folder: Path
    client_id: str
    client_secret: str = field(repr=False)

    def client(self) -> TransferClient:
        """Return a client of Globus. CopyFailed where its package is missing."""
        try:
            from globus_sdk import ClientCredentialsAuthorizer, ConfidentialAppAuthClient, TransferClient
        except ImportError as error:
            reason = "files by Globus need the package globus-sdk: pip install 'fedstac[replica]'"
            raise CopyFailed(CopyCause.SOURCE_REFUSES, reason) from error
        application = ConfidentialAppAuthClient(self.client_id, self.client_secret)
        scopes = TransferClient.scopes.all
        return TransferClient(authorizer=ClientCredentialsAuthorizer(application, scopes))


class GlobusTransport:
    """Lets Globus deliver files. `make_client` is called once, in a thread, when the first file is wanted."""

    def __init__(
        self, collection: str, folder: Path, make_client: Callable[[], TransferClient], *,
        threads: ThreadPoolExecutor, poll_seconds: float = POLL_SECONDS,
    ) -> None:  # fmt: skip
        self._collection, self._folder, self._make_client = collection, folder, make_client
        self._threads, self._poll_seconds = threads, poll_seconds
        self._client: TransferClient | None = None
        self._making = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections. Tasks under way go on at Globus."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def deliver(self, url: SourceUrl, target: Path, size: int | None, on_bytes: Callable[[int], None]) -> None:
        """Let Globus write the file to `target`, and wait until it has. CopyFailed where it gives up."""
        try:
            path = "/" + str(PurePosixPath(target.relative_to(self._folder)))
        except ValueError:
            raise CopyFailed(CopyCause.BAD_PATH, "the file's folder is not in this node's Globus collection") from None
        async with self._making:
            if self._client is None:
                self._client = await in_thread(self._threads, self._make_client)
        client, note = self._client, target.with_name(f"{target.name}.task")
        task_id = await self._ask(url, lambda: self._submit(client, url, path, note))
        while True:
            task = await self._ask(url, lambda: dict(client.get_task(task_id).data))
            on_bytes(min(int(task.get("bytes_transferred") or 0), size if size is not None else 1 << 62))
            match task.get("status"):
                case "SUCCEEDED":
                    await in_thread(self._threads, lambda: note.unlink(missing_ok=True))
                    return
                case "FAILED":
                    await in_thread(self._threads, lambda: note.unlink(missing_ok=True))
                    raise CopyFailed(CopyCause.SOURCE_REFUSES, f"Globus gave up on {url.for_people}: {_reason(task)}")
                case "INACTIVE":
                    raise CopyFailed(CopyCause.SOURCE_AWAY, f"Globus waits for somebody to renew access to {url.host}")
            await asyncio.sleep(self._poll_seconds)

    async def _ask(self, url: SourceUrl, work: Callable[[], T]) -> T:
        """Ask Globus something. CopyFailed where it does not answer, or does not permit it."""
        from globus_sdk import GlobusAPIError, GlobusError

        try:
            return await in_thread(self._threads, work)
        except GlobusAPIError as error:
            refuses = error.http_status in (400, 401, 403, 404)
            cause = CopyCause.SOURCE_REFUSES if refuses else CopyCause.SOURCE_AWAY
            raise CopyFailed(cause, f"Globus answered {error.http_status} about {url.for_people}") from error
        except GlobusError as error:
            raise CopyFailed(CopyCause.SOURCE_AWAY, f"Globus does not answer ({type(error).__name__})") from error

    def _submit(self, client: TransferClient, url: SourceUrl, path: str, note: Path) -> str:
        """Submit the task of a file, or find the one that was submitted before. Return its id."""
        from globus_sdk import TransferData

        submission = _read_note(note)
        if submission is None:
            submission = str(client.get_submission_id()["value"])
            _write_note(note, submission)
        data = TransferData(
            url.host, self._collection, submission_id=submission, label="fedstac replica", verify_checksum=True,
            notify_on_succeeded=False, notify_on_failed=False, notify_on_inactive=False,
        )  # fmt: skip
        data.add_item(url.target, path)
        return str(client.submit_transfer(data)["task_id"])


def _read_note(note: Path) -> str | None:
    try:
        return str(UUID(note.read_text()[:LONGEST_NOTE].strip()))
    except (FileNotFoundError, ValueError):
        return None


def _write_note(note: Path, submission: str) -> None:
    fd = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "w", encoding="ascii") as file:
        file.write(submission)
        file.flush()
        os.fsync(fd)  # it is noted before it is submitted


def _reason(task: dict[str, Any]) -> str:
    return str(task.get("nice_status_short_description") or task.get("nice_status") or "no reason")[:200]
