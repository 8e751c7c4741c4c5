"""What callers may read of datasets that are not open to everybody: `access=full`, by domain/access.py.

Without `access=full` an answer is the same for everybody: without the files of what is retracted, under quarantine or
controlled, and without what is private.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import orjson

from fedstac.api.call import Call
from fedstac.db import grant_rights
from fedstac.db.search import ServedItem
from fedstac.domain import access, visibility
from fedstac.domain.access import DatasetAccess, DatasetReader, View
from fedstac.domain.errors import Unauthenticated
from fedstac.domain.model import State
from fedstac.domain.policy import READING, Principal, Resource
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
        raise Unauthenticated(
            "access=full shows the files of datasets that are not open to everybody; send a token, or leave it out"
        )
    return caller


async def shown_to(call: Call, caller: Principal, items: Sequence[ServedItem]) -> frozenset[tuple[str, str]]:
    """Return the (collection, id) of datasets whose files not everybody sees, and the caller does."""
    datasets = [item for item in items if item.has_hidden_files]
    if caller.is_admin or not datasets:
        return frozenset((item.collection, item.id) for item in datasets)
    views = await views_of(call, caller, datasets)
    return frozenset(key for key, view in views.items() if view >= View.FILES)


async def views_of(
    call: Call, caller: Principal | None, items: Sequence[ServedItem]
) -> dict[tuple[str, str], View]:  # fmt: skip
    """Return what a caller may read of datasets, by collection and id: one question for their grants."""
    vocabularies: dict[tuple[str, str | None], Vocabulary | None] = {}
    for key in {(item.collection, item.cv_version) for item in items}:
        with suppress(UnknownVersion):
            vocabularies[key] = await call.node.vocabulary(*key)

    def describe() -> list[DatasetAccess]:
        return [DatasetAccess(_resource(item, vocabularies), State(item.state), item.access) for item in items]

    return await views_on(call, caller, await call.services.threads.run(describe))


async def views_on(
    call: Call, caller: Principal | None, datasets: Sequence[DatasetAccess]
) -> dict[tuple[str, str], View]:  # fmt: skip
    """Return what a caller may read of datasets that are described already."""
    reader = DatasetReader(call.node.policy, caller)
    granted_keys = await _keys_by_grant(call, caller, access.needing_grants(datasets))
    return {each.key: reader.view_of(each, holds_grant=each.key in granted_keys) for each in datasets}


async def _keys_by_grant(
    call: Call, caller: Principal | None, keys: set[tuple[str, str]]
) -> frozenset[tuple[str, str]]:  # fmt: skip
    """Return those of the datasets for which the caller has a grant that is valid now."""
    if caller is None or not keys:
        return NOBODYS
    async with call.node.search_pool.acquire() as conn:
        return frozenset(await grant_rights.open_to(conn, caller.name, keys))


async def may_read_some_private(call: Call, collection: str) -> bool:
    """Tell whether there may be private datasets of a collection that the caller may read, whichever there are.

    It is asked before a dataset is read: who may read none learns nothing by the time either. A token that is not valid
    is as none.
    """
    caller = None
    with suppress(Unauthenticated):
        caller = await call.find_caller()
    if caller is None:
        return False
    policy = call.node.policy.without_homes
    if caller.is_admin or policy.may_one_somewhere(caller, READING, collection):
        return True
    async with call.node.search_pool.acquire() as conn:
        return collection in await grant_rights.collections_of(conn, caller.name)


async def may_read_some_marked(call: Call, collection: str) -> bool:
    """Tell whether the caller may see some marked dataset of a collection, whether there is one or not.

    It is asked before a dataset is read, as of private ones. A token that is not valid is as none.
    """
    with suppress(Unauthenticated):
        return visibility.may_see_hidden_somewhere(call.node.policy, await call.find_caller(), collection)
    return False


async def may_read_hidden(call: Call, item: ServedItem) -> bool:
    """Tell whether the caller may read a private or a marked dataset. A token that is not valid is as none."""
    with suppress(Unauthenticated):
        caller = await call.find_caller()
        return (await views_of(call, caller, (item,)))[item.collection, item.id] > View.NOTHING
    return False


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
