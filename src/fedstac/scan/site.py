"""A data node as its site file describes it: what it is called, where its files are, and at which addresses.

TOML, since people write it by hand, it has comments and exact types, and Python reads it without another library.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

SERVICES: Final = {  # protocol: as `access` names it; the first that a root has is the address of its files
    "https": "HTTPServer", "http": "HTTPServer", "s3": "S3", "gridftp": "GridFTP", "opendap": "OPENDAP",
    "netcdfsubset": "NetcdfSubset", "wms": "WMS", "wps": "WPS",
}  # fmt: skip
LARGEST: Final = 1 << 20  # bytes of a site file


class SiteBroken(ValueError):
    """The site file, or what stands for it on the command line, is not usable: one sentence for each fault."""


def _node(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?", value):
        raise ValueError(f"{value!r} is no node's name, such as esgf-data.example.org")
    return value


def _urls(value: dict[str, str]) -> dict[str, str]:
    for protocol, url in value.items():
        if protocol not in SERVICES:
            raise ValueError(f"there is no protocol {protocol!r}; there are {', '.join(SERVICES)}")
        parts = urlsplit(url)
        if not (parts.scheme and parts.netloc) or parts.query or parts.fragment or re.search(r"[\s<>\"\\]", url):
            raise ValueError(f"{url!r} is no address to put a path after, such as https://esgf.example.org/data")
        if protocol in ("http", "https") and parts.scheme != protocol:
            raise ValueError(f"{url!r} is not an address of {protocol}")
    if not value:
        raise ValueError('one protocol is needed, such as https = "https://esgf.example.org/data"')
    return {protocol: value[protocol].rstrip("/") for protocol in SERVICES if protocol in value}


def _folder(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError(f"{str(value)!r} has to be an absolute path")
    if not value.is_dir():
        raise ValueError(f"{str(value)!r} is no folder that can be read")
    return Path(os.path.normpath(value))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Globus(_Strict):
    """Where a root is found in Globus."""

    endpoint: str = Field(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")
    path: str = Field(default="/", pattern=r"^/")


class Root(_Strict):
    """A folder whose inner paths go behind the addresses. `urls`: by protocol, without / at the end."""

    folder: Annotated[Path, AfterValidator(_folder)]
    urls: Annotated[dict[str, str], AfterValidator(_urls)]
    globus: Globus | None = None

    @property
    def protocol(self) -> str:
        """The one by which files are fetched."""
        return next(iter(self.urls))

    def address(self, protocol: str, local: str) -> str:
        return f"{self.urls[protocol]}/{quote(local)}"

    def globus_address(self, local: str) -> str:
        assert self.globus is not None
        path = f"{self.globus.path.rstrip('/')}/{local}/"
        return f"https://app.globus.org/file-manager?origin_id={self.globus.endpoint}&origin_path={quote(path)}"


class Site(_Strict):
    """A data node. `access`: what its datasets say about the ways to them; from the addresses if it is empty."""

    node: Annotated[str, AfterValidator(_node)]
    roots: tuple[Root, ...] = Field(min_length=1)
    access: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _apart(self) -> Site:
        folders = [os.path.realpath(root.folder) for root in self.roots]
        for n, folder in enumerate(folders):
            for other in folders[n + 1 :]:
                if is_below(folder, other) or is_below(other, folder):
                    raise ValueError(f"the roots {folder!r} and {other!r} overlap; a file has one root")
        return self

    def access_of(self, root: Root) -> list[str]:
        if self.access:
            return list(self.access)
        ways = [SERVICES[protocol] for protocol in root.urls] + (["Globus"] if root.globus else [])
        return list(dict.fromkeys(ways))


def is_below(path: str, folder: str) -> bool:
    """Return whether a path is a folder or below it, as text: both are resolved."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def read(path: Path) -> Site:
    """Return the site of a file. SiteBroken if it is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise SiteBroken(f"{path} is larger than {LARGEST} bytes")
        content = tomllib.loads(raw.decode())
    except OSError as error:
        raise SiteBroken(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SiteBroken(f"{path} is no TOML: {error}") from None
    return site(content, str(path))


def site(content: Mapping[str, Any], source: str) -> Site:
    """Return the site of these values; `source` is named in SiteBroken."""
    try:
        return Site.model_validate(content)
    except ValidationError as error:
        # of a root that is wrong pydantic says too that the tuple of roots is too short: it was never looked at
        wrong = {fault["loc"][0] for fault in error.errors() if len(fault["loc"]) > 1}
        shown_faults = [fault for fault in error.errors() if len(fault["loc"]) != 1 or fault["loc"][0] not in wrong]
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in shown_faults]
        sentences = [f"{where}: {what}".removeprefix(": ").replace("Value error, ", "") for where, what in faults]
        raise SiteBroken(f"{source}: {'; '.join(sentences)}") from None
