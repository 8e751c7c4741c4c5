"""Files of datasets in the forms that downloaders read. Names and addresses come from documents: they are quoted, or
left out where a form cannot hold them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from fedstac.cli.terminal import for_terminal
from fedstac.client.values import Dataset, File

WGET_HEAD = """\
#!/bin/sh
# Fetches files with wget: run it with sh. What is whole stays, so run it again to go on.
failures=0
is_whole() { # FILE SHA256 SIZE
    [ -f "$1" ] || return 1
    if [ -n "$2" ]; then echo "$2  $1" | sha256sum -c --status -; return; fi
    [ -n "$3" ] && [ "$(wc -c <"$1")" -eq "$3" ]
}
fetch() { # FILE SHA256 SIZE ADDRESS…
    file=$1 sha256=$2 size=$3
    shift 3
    if is_whole "$file" "$sha256" "$size"; then return; fi
    mkdir -p -- "$(dirname -- "$file")"
    for address in "$@"; do
        if wget -c -O "$file.part" -- "$address"; then
            if [ -z "$sha256$size" ] || is_whole "$file.part" "$sha256" "$size"; then
                mv -- "$file.part" "$file"
                return
            fi
            echo "$file: what $address gives is not the file" >&2
            rm -f -- "$file.part"
        fi
    done
    echo "$file: not fetched" >&2
    failures=$((failures + 1))
}
"""
WGET_END = '[ "$failures" -eq 0 ] || { echo "$failures files were not fetched; run it again" >&2; exit 1; }\n'


class FileForm(StrEnum):
    """What a line, or a few lines, of a file look like."""

    URLS = "urls"
    WGET = "wget"
    ARIA2 = "aria2"
    SHA256 = "sha256"


def head_of(form: FileForm) -> str:
    """Return what stands before the first file."""
    return WGET_HEAD if form is FileForm.WGET else ""


def end_of(form: FileForm) -> str:
    """Return what stands behind the last file."""
    return WGET_END if form is FileForm.WGET else ""


def group(files: Iterable[File]) -> Iterator[tuple[File, list[File]]]:
    """Yield each file once, with its copies at other nodes."""
    by_asset: dict[str, list[File]] = {}
    for file in files:
        by_asset.setdefault(file.asset, []).append(file)
    for copies in by_asset.values():
        yield copies[0], copies[1:]


def as_json(file: File) -> Mapping[str, Any]:
    """Return a file as a row for programs."""
    return {"id": file.dataset, "asset": file.asset, "node": file.node, "href": file.href, "path": file.path,
            "size": file.size, "sha256": file.sha256}  # fmt: skip


def text(file: File, mirrors: Sequence[File], form: FileForm) -> str | None:
    """Return a file in a form; None if its address, path or checksum does not allow it."""
    addresses = [each.href for each in (file, *mirrors) if each.is_web and _is_same(file, each)]
    match form:
        case FileForm.URLS:
            return f"{file.href}\n" if file.is_address else None
        case FileForm.SHA256:
            return f"{file.sha256}  {file.path}\n" if file.sha256 and file.path else None
        case FileForm.WGET if addresses and file.path:
            words = [file.path, file.sha256 or "", str(size_of(file) or ""), *addresses]
            return f"fetch {' '.join(map(shlex.quote, words))}\n"
        case FileForm.ARIA2 if addresses and file.path:
            check = f"  checksum=sha-256={file.sha256}\n" if file.sha256 else ""
            return "\t".join(addresses) + f"\n  out={file.path}\n  continue=true\n{check}"
        case _:
            return None


def size_of(file: File) -> int | None:
    """Return the size in bytes; None where the document says none, or something else."""
    return file.size if type(file.size) is int and file.size >= 0 else None


def _is_same(file: File, copy: File) -> bool:
    """Return whether a copy has the original's checksum: another is another file."""
    return copy.checksum == file.checksum


def retraction_of(dataset: Dataset) -> str | None:
    """Return in one line why a dataset is retracted, and what to use instead; None of one that is not."""
    if dataset.state != "retracted":
        return None
    retraction = dataset.properties.get("fedstac:retraction") or {}
    line = f"{dataset.id} is retracted: {retraction.get('reason') or 'no reason was given'}"
    if retraction.get("replaced_by"):
        line += f"; use instead: {retraction['replaced_by']}"
    return for_terminal(line)
