"""Whose files of retracted datasets are shown: `access=full`, for those who may retract or reinstate the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import orjson

from fedstac.api.call import Call
from fedstac.db.search import ServedItem
from fedstac.domain import visibility
from fedstac.domain.errors import Unauthenticated
from fedstac.domain.policy import Principal, Resource
from fedstac.domain.vocabulary import UnknownVersion, Vocabulary

PRIVATE: Final = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}  # of what differs by caller
OF_PAGES: Final = {"Vary": "Accept"}  # a page is JSON or a file
PRIVATE_PAGES: Final = PRIVATE | {"Vary": "Accept, Authorization"}
NOBODYS: Final[frozenset[tuple[str, str]]] = frozenset()

Vocabularies = Mapping[tuple[str, str | None], Vocabulary | None]


async def caller_of(call: Call) -> Principal:
    """Return the caller of a route that is asked for `access=full`. Unauthenticated without a valid token."""
    caller = await call.find_caller()
    if caller is None:
        raise Unauthenticated("access=full shows the files of retracted datasets; send a token, or leave it out")
    return caller


async def shown_to(call: Call, caller: Principal, items: Sequence[ServedItem]) -> frozenset[tuple[str, str]]:
    """Return the (collection, id) of datasets, retracted or under quarantine, whose files the caller may see."""
    retracted = [item for item in items if item.state in ("retracted", "quarantined")]
    if caller.is_admin or not retracted:
        return frozenset((item.collection, item.id) for item in retracted)
    vocabularies: dict[tuple[str, str | None], Vocabulary | None] = {}
    for key in {(item.collection, item.cv_version) for item in retracted}:
        with suppress(UnknownVersion):
            vocabularies[key] = await call.node.vocabulary(*key)
    policy = call.node.policy

    def select() -> frozenset[tuple[str, str]]:
        return frozenset(
            (item.collection, item.id) for item in retracted
            if visibility.may_see_files(
                policy, caller, _resource(item, vocabularies), is_quarantined=item.state == "quarantined"
            )
        )  # fmt: skip

    return await call.services.threads.run(select)


async def institution_of(call: Call, collection: str, cv_version: str | None, document: str | None) -> str | None:
    """Return whose dataset a document is, for the policy; None where that cannot be said."""
    vocabulary = None
    with suppress(UnknownVersion):
        vocabulary = await call.node.vocabulary(collection, cv_version)
    return _institution(document, vocabulary) if document is not None else None


def _institution(document: str, vocabulary: Vocabulary | None) -> str | None:
    institution = orjson.loads(document)["properties"].get(vocabulary.institution) if vocabulary else None
    return institution if isinstance(institution, str) else None


def _resource(item: ServedItem, vocabularies: Vocabularies) -> Resource:
    vocabulary = vocabularies.get((item.collection, item.cv_version))
    return Resource(item.id, item.collection, _institution(item.document, vocabulary))
