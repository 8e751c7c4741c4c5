"""What happens when someone publishes a dataset (publication.md, Versions)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from fedstac.domain import crosschecks, events, policy, validation, versions
from fedstac.domain.actions.amend import (
    Difference,
    completed,
    difference_between,
    excused,
    with_alternates,
    without_alternates,
)
from fedstac.domain.actions.target import Target, may_see_marked
from fedstac.domain.errors import Conflict, Finding, ForeignOrigin, ItemAlreadyExists, PreconditionFailed
from fedstac.domain.model import Change, Decision, Draft, Lineage, Outcome, Record, State, World

ALTERNATE = '"alternate":'


@dataclass(frozen=True, slots=True)
class Publish:
    """A new version, or the same one again."""

    draft: Draft
    principal: policy.Principal
    cv_version: str | None = None  # fixed when the request was accepted
    held: tuple[Finding, ...] = ()  # errors by that version, which the stored document may excuse
    only_new: bool = False  # If-None-Match: *

    @property
    def target(self) -> Target:
        return Target(self.draft.collection, self.draft.id, self.draft.lineage)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Demotes the latest before it promotes a newer version; raises a Problem where it is refused."""
        touched = policy.Touched(
            self.draft.id, self.draft.collection, self.draft.institution, frozenset(self.draft.nodes)
        )
        world.policy.require(self.principal, policy.Action.PUBLISH, touched)
        if lineage.origin != world.origin:
            raise ForeignOrigin(f"{self.draft.id} belongs to the node {lineage.origin}; publish it there")
        stored = lineage.records.get(self.draft.id)
        if stored is not None and self.only_new:
            raise PreconditionFailed(f"{stored.id} is there already; send it without If-None-Match to change it")
        if stored is not None:
            return self._again(stored, lineage, world)
        if self.held:
            raise validation.refusal_of(self.draft.id, self.held)
        return self._first(lineage, world)

    def _first(self, lineage: Lineage, world: World) -> Decision:
        """A version that was not here before."""
        if ALTERNATE in self.draft.text:
            written = orjson.loads(self.draft.text)
            bare = without_alternates(written)
            merged = completed(bare, written)
            self._permit(difference_between(bare, merged), world)
            if merged != written:
                return self._with(merged, world)._first(lineage, world)
        others = any(record.version is not None for record in lineage.records.values())
        is_newest = versions.is_newest(self.draft.version, lineage)
        published = Change(events.PUBLISHED, None, self._record(lineage, world, latest=is_newest), self.draft)
        outcome = (Outcome.NEWER if is_newest else Outcome.OLDER) if others else Outcome.NEW
        return Decision(outcome, versions.changes(published, lineage, world), self._beside(lineage.latest, world))

    def _beside(self, latest: Record | None, world: World) -> tuple[Finding, ...]:
        """Warnings about this version beside the one that was the latest before."""
        vocabulary = world.vocabulary(self.draft.collection, self.cv_version)
        if latest is None or latest.document is None or not crosschecks.is_on(crosschecks.COVERAGE, vocabulary):
            return ()
        this = crosschecks.version_of(self.draft.text, self.draft.id, self.draft.version)
        that = crosschecks.version_of(latest.document, latest.id, latest.version)
        finding = crosschecks.coverage(this, that) if this and that else None
        return (finding,) if finding else ()

    def _again(self, stored: Record, lineage: Lineage, world: World) -> Decision:
        """The same version: identical, other metadata, or other files, which a version never gets."""
        if stored.state is not State.PUBLISHED:
            tells = stored.state is State.RETRACTED or may_see_marked(self.target, self.principal, world)
            what = f"{stored.id} is {stored.state}" if tells else f"the id {stored.id} was used before"
            raise Conflict(f"{what}; publish a new version instead")
        if stored.document_digest == self.draft.document_digest:
            return Decision(Outcome.IDENTICAL)
        known, written = orjson.loads(stored.document or "{}"), orjson.loads(self.draft.text)
        merged = completed(known, with_alternates(known, written))
        difference = difference_between(known, merged)
        if not difference.actions:
            return Decision(Outcome.IDENTICAL)
        if stored.version is None:
            raise ItemAlreadyExists(f"{stored.id} exists with other content; change it with PUT or PATCH")
        if policy.Action.REPLACE in difference.actions:
            raise ItemAlreadyExists(
                f"{stored.id} exists with other files; files never change under a version: publish a new version"
            )
        self._permit(difference, world)
        return (self if merged == written else self._with(merged, world))._updated(stored, lineage, world)

    def _permit(self, difference: Difference, world: World) -> None:
        """What publishing changes beside: each by its own permission, and of replicas only the own node's."""
        for action in sorted(difference.actions):
            nodes = difference.touched_by(action)
            touched = policy.Touched(self.draft.id, self.draft.collection, self.draft.institution, nodes)
            world.policy.require(self.principal, action, touched)

    def _with(self, document: Mapping[str, Any], world: World) -> Publish:
        """The same with another document: the replicas that nodes have put into the stored one are kept."""
        collection = self.draft.collection
        vocabulary = world.vocabulary(collection, self.cv_version)
        return replace(self, draft=world.judge.draft(document, collection, vocabulary)[0])

    def _updated(self, stored: Record, lineage: Lineage, world: World) -> Decision:
        vocabulary = world.vocabulary(stored.collection, self.cv_version)
        allowed = excused(self.held, stored, vocabulary, world)
        updated = replace(
            self._record(lineage, world, latest=stored.latest),
            created=stored.created,
            publisher=stored.publisher,
            cv_excused=validation.excusal(allowed),
            superseded=stored.superseded,
        )
        change = Change(events.UPDATED, stored, updated, self.draft)
        return Decision(Outcome.UPDATED, versions.changes(change, lineage, world), allowed)

    def _record(self, lineage: Lineage, world: World, *, latest: bool) -> Record:
        """The stored state of what is published; its place in the lineage comes with `versions.changes`."""
        return Record(
            collection=self.draft.collection,
            id=self.draft.id,
            lineage=lineage.key,
            origin=world.origin,
            version=self.draft.version,
            state=State.PUBLISHED,
            latest=latest,
            claims_latest=latest,
            epoch=world.epoch,
            seq=0,
            created=world.now,
            updated=world.now,
            document=self.draft.text,
            document_digest=self.draft.document_digest,
            files_digest=self.draft.files_digest,
            publisher=self.principal.name,
            cv_version=self.cv_version,
            replicas=self.draft.replicas,
        )
