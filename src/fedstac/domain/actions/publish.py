"""What happens when someone publishes a dataset (publication.md, Versions)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import orjson

from fedstac.domain import events, policy, validation
from fedstac.domain.actions.amend import with_alternates
from fedstac.domain.actions.target import Target
from fedstac.domain.errors import Conflict, Finding, ForeignOrigin, ItemAlreadyExists, Severity, errors_in
from fedstac.domain.model import Change, Decision, Draft, Lineage, Outcome, Record, State, World

ALTERNATE = '"alternate":'


@dataclass(frozen=True, slots=True)
class Publish:
    """A new version, or the same one again."""

    draft: Draft
    principal: policy.Principal
    cv_version: str | None = None  # fixed when the request was accepted
    held: tuple[Finding, ...] = ()  # errors by that version, which the stored document may excuse

    @property
    def target(self) -> Target:
        return Target(self.draft.collection, self.draft.id, self.draft.lineage)

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Demotes the latest before it promotes a newer version; raises a Problem where it is refused."""
        touched = policy.Touched(self.draft.id, self.draft.collection, self.draft.institution)
        world.policy.require(self.principal, policy.Action.PUBLISH, touched)
        if lineage.origin != world.origin:
            raise ForeignOrigin(f"{self.draft.id} belongs to the node {lineage.origin}; publish it there")
        stored = lineage.records.get(self.draft.id)
        if stored is not None:
            return self._again(stored, lineage, world)
        if self.held:
            raise validation.refusal_of(self.draft.id, self.held)
        versions = [record.version for record in lineage.records.values() if record.version is not None]
        is_newest = all((self.draft.version or 0) > version for version in versions)
        demoted = self._demotions(lineage, world) if is_newest else ()
        published = Change(
            event_type=events.PUBLISHED,
            before=None,
            after=self._record(lineage, world, seq=lineage.seq + len(demoted) + 1, latest=is_newest),
            draft=self.draft,
        )
        outcome = Outcome.NEW if not versions else Outcome.NEWER if is_newest else Outcome.OLDER
        return Decision(outcome, (*demoted, published))

    def _again(self, stored: Record, lineage: Lineage, world: World) -> Decision:
        """The same version: identical, other metadata, or other files, which a version never gets."""
        if stored.state is not State.PUBLISHED:
            raise Conflict(f"{stored.id} is {stored.state}; publish a new version instead")
        if stored.document is not None and ALTERNATE in stored.document:
            return replace(self, draft=self._with_replicas(stored.document, world))._same(stored, lineage, world)
        return self._same(stored, lineage, world)

    def _with_replicas(self, known: str, world: World) -> Draft:
        """The draft with the replicas that nodes have put into the stored document."""
        written = orjson.loads(self.draft.text)
        merged = with_alternates(orjson.loads(known), written)
        if merged == written:
            return self.draft
        vocabularies, collection = world.judge.vocabularies, self.draft.collection
        vocabulary = vocabularies.at(collection, self.cv_version) if self.cv_version is not None else None
        return world.judge.draft(merged, collection, vocabulary)[0]

    def _same(self, stored: Record, lineage: Lineage, world: World) -> Decision:
        if stored.document_digest == self.draft.document_digest:
            return Decision(Outcome.IDENTICAL)
        if stored.version is None:
            raise ItemAlreadyExists(f"{stored.id} exists with other content; change it with PUT or PATCH")
        if stored.files_digest != self.draft.files_digest:
            raise ItemAlreadyExists(
                f"{stored.id} exists with other files; files never change under a version: publish a new version"
            )
        excused = self._excused(stored, world)
        updated = replace(
            self._record(lineage, world, seq=lineage.seq + 1, latest=stored.latest),
            created=stored.created,
            publisher=stored.publisher,
            cv_excused=validation.excusal(excused),
        )
        change = Change(event_type=events.UPDATED, before=stored, after=updated, draft=self.draft)
        return Decision(Outcome.UPDATED, (change,), excused)

    def _excused(self, stored: Record, world: World) -> tuple[Finding, ...]:
        """The errors held against the document, as warnings. StacInvalid unless the stored one has them all."""
        if not self.held or stored.document is None:
            return ()
        vocabularies = world.judge.vocabularies
        vocabulary = vocabularies.at(stored.collection, self.cv_version) if self.cv_version else None
        findings = validation.excused(self.held, world.judge.stored(stored.document, stored.collection, vocabulary))
        if errors_in(findings):
            raise validation.refusal_of(self.draft.id, findings)
        return tuple(finding for finding in findings if finding.severity is Severity.WARNING)

    def _demotions(self, lineage: Lineage, world: World) -> tuple[Change, ...]:
        old = lineage.latest
        if old is None:
            return ()
        after = replace(
            old, latest=False, claims_latest=False, epoch=world.epoch, seq=lineage.seq + 1, updated=world.now
        )
        return (Change(event_type=events.SUPERSEDED, before=old, after=after, reason=f"superseded by {self.draft.id}"),)

    def _record(self, lineage: Lineage, world: World, *, seq: int, latest: bool) -> Record:
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
            seq=seq,
            created=world.now,
            updated=world.now,
            document=self.draft.text,
            document_digest=self.draft.document_digest,
            files_digest=self.draft.files_digest,
            publisher=self.principal.name,
            cv_version=self.cv_version,
            replicas=self.draft.replicas,
        )
