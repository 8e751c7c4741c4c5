"""What happens when someone publishes a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from fedstac.domain import alternates, cascade, crosschecks, documents, events, policy, validation, versions
from fedstac.domain.access import level_in_document, level_of_draft, warn_of_kept_level
from fedstac.domain.actions.target import (
    QueuedAction,
    Target,
    is_hidden,
    may_see_marked,
    refusal_of_marked,
    resource_of_document,
)
from fedstac.domain.difference import Effect, effect_of
from fedstac.domain.documents import ACCESS
from fedstac.domain.errors import Conflict, Finding, ForeignOrigin, ItemAlreadyExists, PreconditionFailed
from fedstac.domain.model import Change, Decision, Draft, Lineage, Outcome, Record, State, World
from fedstac.domain.policy import Level

ALTERNATE = '"alternate":'
REMEDY = "publish a new version instead"


def id_was_used(id: str) -> Conflict:
    """Return the refusal of an id that was used before, which does not say what became of the dataset."""
    return Conflict(f"the id {id} was used before; {REMEDY}")


def is_there(id: str) -> PreconditionFailed:
    """Return the refusal of an id that is there, to somebody who publishes only what is new."""
    return PreconditionFailed(f"{id} is there already; send it without If-None-Match to change it")


@dataclass(frozen=True, slots=True)
class Publish:
    """A new version, or the same one again."""

    draft: Draft
    principal: policy.Principal
    cv_version: str | None = None  # fixed when the request was accepted
    errors: tuple[Finding, ...] = ()  # by that version, which the stored document may excuse
    only_new: bool = False  # If-None-Match: *
    rebuilt: Record | None = None  # the record that a full-state load cleared a moment ago
    least_level: Level | None = None  # that of what is stored, where the document says nothing of its own

    @classmethod
    def read(cls, action: QueuedAction) -> Publish:
        """Read a document. It was judged before the 202; `prepared` is what was computed then."""
        if action.prepared:
            draft, errors = documents.unpacked(
                action.text, action.prepared, action.coded, action.collection, action.dataset, action.name
            )
        else:
            draft, errors = documents.prepare(action.body, action.name, action.vocabulary), ()
        return cls(draft, action.principal, action.cv_version, errors, action.only_new)

    @property
    def target(self) -> Target:
        return Target(self.draft.collection, self.draft.id, self.draft.lineage)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Demote the latest before a newer version is promoted. A Problem is raised where the command is refused."""
        resource = policy.Resource(
            self.draft.id, self.draft.collection, self.draft.institution, frozenset(self.draft.nodes)
        )
        world.policy.require(self.principal, policy.Action.PUBLISH, resource)
        if (open_cascade := world.cascades.get(self.draft.collection)) is not None:
            raise cascade.refusal(self.draft.collection, open_cascade)
        if lineage.origin != world.origin:
            raise ForeignOrigin(f"{self.draft.id} belongs to the node {lineage.origin}; publish it there")
        record = lineage.records.get(self.draft.id)
        if record is not None and record.state is not State.CLEARED:
            if self.only_new:
                raise is_there(record.id)
            return self._again(record, lineage, world)
        source = self.rebuilt or record or versions.predecessor(self.draft.version, lineage)
        publication = self._at_level_of(source, world)
        decision = publication._first(lineage, world, cleared=record)
        return replace(decision, warnings=(*decision.warnings, *publication._warnings(source)))

    def _at_level_of(self, source: Record | None, world: World) -> Publish:
        """Return the command at the level of what is stored: the dataset itself, or the version before it.

        A document that says nothing of its level gets what the stored one says. MissingPermission where it says a lower
        one, and the caller may not update the dataset.
        """
        if source is None or source.access is Level.OPEN:
            return self
        if self.draft.states_level:
            if (level := self._level(world)).stricter(source.access) is not level:
                resource = policy.Resource(self.draft.id, self.draft.collection, self.draft.institution)
                world.policy.require(self.principal, policy.Action.UPDATE, resource)
            return self
        at_level = replace(self, least_level=source.access)
        if (level := level_in_document(source)) is Level.OPEN:
            return at_level
        document = orjson.loads(self.draft.text)
        return at_level._with({**document, "properties": {**document["properties"], ACCESS: level}}, world)

    def _level(self, world: World) -> Level:
        """Return the level that the dataset will have: by its document, its project, and what is kept."""
        return level_of_draft(self.draft, world.policy).stricter(self.least_level or Level.OPEN)

    def _warnings(self, source: Record | None) -> tuple[Finding, ...]:
        """Return the warning that a document has a level that it did not say."""
        if self.least_level is None or source is None or level_in_document(source) is Level.OPEN:
            return ()
        return (warn_of_kept_level(self.least_level),)

    def _first(self, lineage: Lineage, world: World, *, cleared: Record | None = None) -> Decision:
        """Decide on a version that was not here before, or was cleared."""
        if self.errors:
            raise validation.refusal_of(self.draft.id, self.errors)
        if ALTERNATE in self.draft.text:
            document = orjson.loads(self.draft.text)
            bare = alternates.without_alternates(document)
            with_replicas = alternates.completed(bare, document)
            self._permit(effect_of(bare, with_replicas), world)
            if with_replicas != document:
                return self._with(with_replicas, world)._first(lineage, world, cleared=cleared)
        others = any(
            record.version is not None and record.state is not State.CLEARED for record in lineage.records.values()
        )
        is_newest = versions.is_newest(self.draft.version, lineage)
        record = self._record(lineage, world, latest=is_newest)
        if self.rebuilt is not None:
            latest = not self.rebuilt.superseded and (is_newest or self.rebuilt.latest)
            record = replace(record, latest=latest, claims_latest=latest, superseded=self.rebuilt.superseded)
        if record.access is Level.PRIVATE:
            record = replace(record, latest=False, claims_latest=False)
        published = Change(events.PUBLISHED, cleared, record, self.draft)
        outcome = (Outcome.NEWER if is_newest else Outcome.OLDER) if others else Outcome.NEW
        return Decision(outcome, versions.changes(published, lineage, world), self._beside(lineage.latest, world))

    def _beside(self, latest: Record | None, world: World) -> tuple[Finding, ...]:
        """Return warnings about this version beside the one that was the latest before."""
        vocabulary = world.vocabulary(self.draft.collection, self.cv_version)
        if latest is None or latest.document is None or not crosschecks.is_on(crosschecks.COVERAGE, vocabulary):
            return ()
        this = crosschecks.version_of(self.draft.text, self.draft.id, self.draft.version)
        that = crosschecks.version_of(latest.document, latest.id, latest.version)
        finding = crosschecks.coverage(this, that) if this and that else None
        return (finding,) if finding else ()

    def _again(self, record: Record, lineage: Lineage, world: World) -> Decision:
        """Decide on a version that is here: it is identical, has other metadata, or other files, which are refused."""
        if record.state is not State.PUBLISHED:
            tells = (
                record.state is State.RETRACTED or may_see_marked(self.target, self.principal, world)
            ) and not is_hidden(record, self.principal, world)  # fmt: skip
            if not tells:
                raise id_was_used(record.id)
            is_marked = record.state is State.MARKED
            raise (
                refusal_of_marked(record, world) if is_marked else Conflict(f"{record.id} is {record.state}; {REMEDY}")
            )
        if record.access is Level.PRIVATE:
            self._permit_stored(record, orjson.loads(record.document or "{}"), world)
        publication = self._at_level_of(record, world)
        decision = publication._compare(record, lineage, world)
        warnings = publication._warnings(record) if decision.changes else ()
        return replace(decision, warnings=(*decision.warnings, *warnings))

    def _compare(self, record: Record, lineage: Lineage, world: World) -> Decision:
        """Decide by what differs between the stored document and this one, which is at its level already."""
        has_other_level = self._level(world) is not record.access
        if record.document_digest == self.draft.document_digest and not has_other_level:
            return Decision(Outcome.IDENTICAL)
        before, document = orjson.loads(record.document or "{}"), orjson.loads(self.draft.text)
        self._permit_stored(record, before, world)
        with_replicas = alternates.completed(before, alternates.with_alternates(before, document))
        effect = effect_of(before, with_replicas)
        if not effect.actions and not has_other_level:
            return Decision(Outcome.IDENTICAL)
        if record.version is None and effect.actions:
            raise ItemAlreadyExists(f"{record.id} exists with other content; change it with PUT or PATCH")
        if policy.Action.REPLACE in effect.actions:
            raise ItemAlreadyExists(
                f"{record.id} exists with other files; files never change under a version: publish a new version"
            )
        self._permit(effect, world)
        return (self if with_replicas == document else self._with(with_replicas, world))._updated(
            record, lineage, world
        )

    def _permit_stored(self, record: Record, document: Mapping[str, Any], world: World) -> None:
        """Require the right to the dataset that is here: its document may name another institution than this one."""
        if (vocabulary := world.vocabulary(record.collection, record.cv_version)) is None:
            return
        if is_hidden(record, self.principal, world):
            raise id_was_used(record.id)
        resource = resource_of_document(record, document, vocabulary)
        world.policy.require(self.principal, policy.Action.PUBLISH, resource)

    def _permit(self, effect: Effect, world: World) -> None:
        """Require the permission for each action that publishing brings along; of replicas, only the own node's."""
        for action in sorted(effect.actions):
            nodes = effect.nodes_of(action)
            resource = policy.Resource(self.draft.id, self.draft.collection, self.draft.institution, nodes)
            world.policy.require(self.principal, action, resource)

    def _with(self, document: Mapping[str, Any], world: World) -> Publish:
        """Return the command with another document, which keeps the replicas that nodes put into the stored one."""
        collection = self.draft.collection
        vocabulary = world.vocabulary(collection, self.cv_version)
        return replace(self, draft=world.judge.draft(document, collection, vocabulary)[0])

    def _updated(self, record: Record, lineage: Lineage, world: World) -> Decision:
        vocabulary = world.vocabulary(record.collection, self.cv_version)
        excused = validation.excuse(self.errors, record, vocabulary, world.judge)
        updated = replace(
            self._record(lineage, world, latest=record.latest),
            access=record.access,
            created=record.created,
            publisher=record.publisher,
            cv_excused=validation.excusal(excused),
            superseded=record.superseded,
        )
        updated = versions.at_level(updated, lineage, self._level(world))
        change = Change(events.UPDATED, record, updated, self.draft)
        return Decision(Outcome.UPDATED, versions.changes(change, lineage, world), excused)

    def _record(self, lineage: Lineage, world: World, *, latest: bool) -> Record:
        """Return the record of what is published; `versions.changes` gives it its place in the lineage."""
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
            access=self._level(world),
        )
