"""Where the files of a replica node are: the folder of each tier, and the address under which others find a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from fedstac.domain.replication.policy import ReplicaPolicy
from fedstac.domain.replication.states import RESTRICTED_TIER, SERVED_TIER
from fedstac.settings import Settings


def folders_of(settings: Settings, policy: ReplicaPolicy) -> Mapping[str, Path]:
    """Return the folder of each tier. Restricted files are beside the served folder, in `<folder>.restricted`."""
    base = Path(settings.replica_folder)
    restricted = base.with_name(f"{base.name}.{RESTRICTED_TIER}")
    return {
        SERVED_TIER: base, RESTRICTED_TIER: restricted, **{name: Path(text) for name, text in policy.tiers.items()},
    }  # fmt: skip


def address_of(settings: Settings, policy: ReplicaPolicy, *, tier: str, path: str) -> str:
    """Return the address that a file is announced with.

    A tier whose folder is below the served one has its place there; any other one is served under its name.
    """
    base = settings.replica_url.rstrip("/")
    if tier == SERVED_TIER:
        return f"{base}/{quote(path)}"
    folders = folders_of(settings, policy)
    folder = folders.get(tier)
    if folder is not None and folder.is_relative_to(folders[SERVED_TIER]):
        return f"{base}/{quote(folder.relative_to(folders[SERVED_TIER]).as_posix())}/{quote(path)}"
    return f"{base}/{quote(tier)}/{quote(path)}"
