"""What a retraction says: why, where the fault is explained, what to use instead, what nodes do with their copies.

A retraction has a reason. The one exception is the patch of ESGF's publisher, which cannot give one (docs/adr/0017).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import orjson

from fedstac.domain.errors import BadRequest, Finding, Severity, StacInvalid
from fedstac.domain.model import State

MEMBERS: Final = ("reason", "errata", "replaced_by", "data")
DATASET_ID: Final = re.compile(r"[^/?#%\s]{1,512}")
LONGEST_TEXT: Final = 2000

WITHOUT_REASON: Final = "{}"  # as text_of gives it: what a patch retracts

Retraction = Mapping[str, str]


class Data(StrEnum):
    """What nodes do with their copies of a retracted dataset."""

    KEEP = "keep"
    RESTRICT = "restrict"
    PURGE = "purge"


def read(value: object) -> dict[str, str]:
    """Return the members that a caller gives. BadRequest or StacInvalid where they are not well formed."""
    if not isinstance(value, dict):
        raise BadRequest(f"a retraction is a JSON object; send {{{', '.join(MEMBERS)}}}")
    findings = [
        Finding("retraction", f"/{name}", f"`{name}` is not one of {', '.join(MEMBERS)}")
        for name in value if name not in MEMBERS
    ] + [
        Finding("retraction", f"/{name}", f"`{name}` is a text of at most {LONGEST_TEXT} characters")
        for name, text in value.items()
        if name in MEMBERS and (not isinstance(text, str) or len(text) > LONGEST_TEXT)
    ]  # fmt: skip
    if findings:
        raise _invalid(*findings)
    if value.get("data", Data.KEEP) not in tuple(Data):
        raise _invalid(Finding("retraction", "/data", f"`data` is one of {', '.join(Data)}"))
    if "errata" in value and not value["errata"].startswith(("https://", "http://")):
        raise _invalid(Finding("retraction", "/errata", "`errata` is an address: https://…"))
    if "replaced_by" in value and not DATASET_ID.fullmatch(value["replaced_by"]):
        raise _invalid(Finding("retraction", "/replaced_by", "`replaced_by` is the id of a dataset"))
    if "reason" in value and not value["reason"].strip():
        raise _invalid(Finding("retraction", "/reason", "`reason` is empty; say why the dataset must not be used"))
    return dict(value)


def merge(before: Retraction, change: Retraction) -> dict[str, str]:
    """Return a retraction after a repeat: what the repeat does not name stays as it was."""
    return {**before, **change}


def completed(before: str | None, change: Retraction, id: str) -> dict[str, str]:
    """Return the whole retraction of the dataset `id`: the change, and what it does not name as it was before (JSON).

    StacInvalid where there is no reason, or the dataset would replace itself.
    """
    whole = merge(orjson.loads(before) if before else {}, change)
    if not whole.get("reason"):
        raise _invalid(Finding("retraction", "/reason", "`reason` is missing; say why the dataset must not be used"))
    if whole.get("replaced_by") == id:
        raise _invalid(Finding("retraction", "/replaced_by", f"{id} cannot replace itself; name another dataset"))
    return whole


def warnings(change: Retraction, collection: str, state: State | None) -> tuple[Finding, ...]:
    """Return what is doubtful about the replacement that a change names; `state` is None if there is no such dataset.

    A dataset that is marked for deletion is hidden, and counts as not there.
    """
    id = change.get("replaced_by")
    if id is None or state is State.PUBLISHED:
        return ()
    message = f"there is no dataset {id!r} in {collection}; the link to it comes when it is published"
    if state is State.RETRACTED:
        message = f"{id} is retracted too; name a dataset that can be used"
    return (Finding("retraction", "/replaced_by", message, Severity.WARNING),)


def unexplained() -> Finding:
    """Return the warning for a retraction that came as a patch, which gives no reason."""
    message = "the retraction has no reason; retract the dataset again and give one"
    return Finding("retraction", "/properties/retracted", message, Severity.WARNING)


def text_of(retraction: Mapping[str, Any]) -> str:
    """Return the form in which a retraction is stored: the same members make the same text."""
    return orjson.dumps(retraction, option=orjson.OPT_SORT_KEYS).decode()


def _invalid(*findings: Finding) -> StacInvalid:
    return StacInvalid(f"the retraction is not valid: {findings[0].message}", findings=findings)
