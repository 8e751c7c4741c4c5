"""What happens when someone changes a stored dataset: a patch, a whole document, replicas, flags in a patch.

An edit is applied to the stored document under the lock. It is classified by the difference that it makes, never by
what it claims; the difference says which permissions it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from fedstac.domain import (
    alternates,
    documents,
    events,
    patching,
    retraction,
    stac_versions,
    strict_json,
    validation,
    versions,
)
from fedstac.domain.access import at_level_of, level_of_draft, warn_of_kept_level
from fedstac.domain.actions.target import QueuedAction, Target, find, refusal_of_files, resource_of_document
from fedstac.domain.difference import Effect, effect_of
from fedstac.domain.errors import BodyTooLarge, Conflict, Finding, StacInvalid, errors_in, pointer
from fedstac.domain.model import Change, Decision, Draft, Lineage, Outcome, Record, World
from fedstac.domain.patching import Edit, Whole
from fedstac.domain.policy import AMENDING, Action, Level, Principal
from fedstac.domain.vocabulary import Vocabulary

Json = Mapping[str, Any]
MOST_BYTES: Final = 4 << 20  # of an item
# What is announced, and the outcome: of several actions at once, the first of these.
ANNOUNCED: Final[tuple[tuple[Action, str, Outcome], ...]] = (
    (Action.RETRACT, events.RETRACTED, Outcome.RETRACTED),
    (Action.REINSTATE, events.REINSTATED, Outcome.REINSTATED),
    (Action.REPLACE, events.REPLACED, Outcome.REPLACED),
    (Action.SUPERSEDE, events.SUPERSEDED, Outcome.SUPERSEDED),
    (Action.UPDATE, events.UPDATED, Outcome.UPDATED),
    (Action.REPLICATE, events.REPLICATED, Outcome.REPLICATED),
    (Action.ANNOTATE, events.ANNOTATED, Outcome.ANNOTATED),
)


@dataclass(frozen=True, slots=True)
class Amend:
    """An edit of the stored document."""

    target: Target
    principal: Principal
    edit: Edit
    cv_version: str | None = None  # the newest when the request was accepted
    override: str | None = None  # the reason for other files under the same version
    expected: tuple[str, ...] | None = None  # entity tags (If-Match)
    node: str | None = None  # the edit is about this node's replicas alone

    @classmethod
    def read(cls, action: QueuedAction) -> Amend:
        """Read {"edit": {…}, "override": "…", "node": "…", "expected": […]}."""
        body = action.body
        return cls(
            action.target, action.principal, patching.from_json(body["edit"]), action.cv_version,
            override=body.get("override"), expected=action.expected, node=body.get("node"),
        )  # fmt: skip

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """Apply the edit: one change, or none where nothing differs. Every Problem leaves everything as it is.

        A caller who may change nothing of the dataset is refused before the edit is looked at, whatever its effect.
        """
        record = find(self.target, self.principal, lineage, world, self.expected)
        before: dict[str, Any] = orjson.loads(record.document or "{}")
        self._permit_some(record, before, world)
        edited, upgrades = stac_versions.upgraded(shaped(self.edit.apply(_patchable(before, record))))
        flags = frozenset() if isinstance(self.edit, Whole) else _flags(record, lineage, edited["properties"])
        after = self._completed(before, edited, keeps_files=Action.RETRACT in flags or record.is_retracted)
        says_level = patching.names(self.edit, "properties", documents.ACCESS)
        keeps_level = not says_level and after["properties"].get(documents.ACCESS) is None
        if keeps_level:
            after = at_level_of(before, after)
        newest = self._vocabulary(record, world, newest=True)
        check_identity(before, after, newest)
        effect = effect_of(before, after)
        self._permit(record, before, effect, flags, world, newest)
        if Action.REPLACE in effect.actions:
            after = alternates.without_stale(after)
        actions = effect.actions | flags
        if not actions:
            return Decision(Outcome.IDENTICAL)
        edition = self._judge(record, after, effect, world) if effect.actions else Edition(record.cv_version)
        least_level = Level.OPEN if says_level and Action.UPDATE in actions else record.access
        decision = self._decision(record, lineage, world, actions, edition, least_level)
        warnings = [retraction.unexplained()] if Action.RETRACT in flags else []
        if keeps_level and documents.ACCESS in before["properties"]:
            warnings.append(warn_of_kept_level(record.access))
        return replace(decision, warnings=(*upgrades, *decision.warnings, *warnings))

    def _completed(self, before: Json, edited: Json, *, keeps_files: bool) -> Json:
        """Return the edited document as it will be stored: less the server's members, with files and replicas kept."""
        if keeps_files and not edited["assets"]:
            edited = {**edited, "assets": before["assets"]}  # ESGF's publisher empties them; the files stay known
        if self.override:
            edited = alternates.without_contradictions(edited)
        if isinstance(self.edit, Whole):
            edited = alternates.with_alternates(before, edited)
        return alternates.completed(before, documents.without_server_members(edited))

    def _vocabulary(self, record: Record, world: World, *, newest: bool) -> Vocabulary | None:
        """Return the newest vocabulary, for what the publisher wrote, or the record's own, for what stays as it was."""
        return world.vocabulary(record.collection, self.cv_version if newest else record.cv_version)

    def _permit_some(self, record: Record, document: Json, world: World) -> None:
        """Raise MissingPermission where the caller may not make a single change of the dataset by such an edit."""
        resource = resource_of_document(record, document, self._vocabulary(record, world, newest=False))
        if self.node is not None:
            world.policy.require(self.principal, Action.REPLICATE, replace(resource, nodes=frozenset((self.node,))))
        else:
            world.policy.require_one_of(self.principal, AMENDING, resource)

    def _permit(
        self, record: Record, document: Json, effect: Effect, flags: frozenset[Action], world: World,
        vocabulary: Vocabulary | None,
    ) -> None:  # fmt: skip
        """Require the permission for each action by itself. MissingPermission or Conflict where one is not allowed."""
        resource = resource_of_document(record, document, vocabulary)
        for action in sorted(effect.actions | flags):
            world.policy.require(self.principal, action, replace(resource, nodes=effect.nodes_of(action)))
        # a node may say that it has no copy any more: the retraction may ask it to purge or restrict its files
        harmless = {Action.ANNOTATE} if effect.adds_entries else {Action.ANNOTATE, Action.REPLICATE}
        if record.is_retracted and (effect.actions - harmless):
            raise Conflict(f"{record.id} is retracted; reinstate it before it is changed")
        if Action.REPLACE in effect.actions and not self.override:
            raise refusal_of_files(record.id)

    def _judge(self, record: Record, after: Json, effect: Effect, world: World) -> Edition:
        """Return the new document as a draft. StacInvalid for errors that the stored document does not have too."""
        is_written = bool(effect.actions & {Action.UPDATE, Action.REPLACE})
        vocabulary = self._vocabulary(record, world, newest=is_written)
        draft, findings = world.judge.draft(after, record.collection, vocabulary)
        excused = validation.excuse(errors_in(findings), record, vocabulary, world.judge)
        return Edition(vocabulary.version if vocabulary else None, draft, excused)

    def _decision(
        self, record: Record, lineage: Lineage, world: World, actions: frozenset[Action], edition: Edition,
        least_level: Level,
    ) -> Decision:  # fmt: skip
        [(event, outcome), *_] = [(event, outcome) for action, event, outcome in ANNOUNCED if action in actions]
        after = replace(_with_flags(record, lineage, actions), cv_version=edition.cv_version)
        if (draft := edition.draft) is not None:
            after = replace(
                after, document=draft.text, document_digest=draft.document_digest, files_digest=draft.files_digest,
                replicas=draft.replicas, cv_excused=validation.excusal(edition.excused),
            )  # fmt: skip
            after = versions.at_level(after, lineage, level_of_draft(draft, world.policy).stricter(least_level))
        reason = self.override if Action.REPLACE in actions else None
        change = Change(event, record, after, edition.draft, reason=reason, actions=tuple(sorted(actions)))
        return Decision(outcome, versions.changes(change, lineage, world), edition.excused)


@dataclass(frozen=True, slots=True)
class Edition:
    """The document after an edit, the vocabulary that judged it, and the errors that are excused."""

    cv_version: str | None
    draft: Draft | None = None  # None where the document stays as it is
    excused: tuple[Finding, ...] = field(default=())


def _patchable(document: Json, record: Record) -> dict[str, Any]:
    """Return the document as a patch sees it: what was written, with the server's state."""
    return {**document, "properties": {**document["properties"], **documents.state_of(record)}}


def shaped(edited: Any) -> dict[str, Any]:
    """Return the edited document. StacInvalid where the edit leaves no item behind, BodyTooLarge for a huge one."""
    if wrong := _misshapen_members(edited):
        findings = [Finding("shape", pointer(name) if name else "", "what is left is no STAC Item") for name in wrong]
        raise StacInvalid(
            f"the change leaves no STAC Item behind; keep its {', '.join(wrong) or 'members'}", findings=findings
        )
    text = orjson.dumps(edited)
    if len(text) > MOST_BYTES:
        raise BodyTooLarge(f"the change makes {len(text)} bytes of the item; {MOST_BYTES} are the most, so add less")
    strict_json.parse(text)  # as deep as what is posted, and no deeper
    return dict(edited)


def _misshapen_members(edited: Any) -> list[str]:
    """Return the members that are not of an item's kind; "" stands for the whole."""
    if not isinstance(edited, dict):
        return [""]
    kinds = {"properties": dict, "assets": dict, "links": list, "id": str, "collection": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(edited.get(name), kind)]
    wrong += [] if wrong or all(isinstance(asset, dict) for asset in edited["assets"].values()) else ["assets"]
    links_are_links = isinstance(edited.get("links"), list) and all(
        isinstance(link, dict) and isinstance(link.get("rel"), str) for link in edited["links"]
    )
    wrong += [] if links_are_links else ["links"]
    extensions = edited.get("stac_extensions", [])
    strings = isinstance(extensions, list) and all(isinstance(uri, str) for uri in extensions)
    return wrong + ([] if strings else ["stac_extensions"])


def _flags(record: Record, lineage: Lineage, properties: Json) -> frozenset[Action]:
    """Return what the server's flags in a patch ask for: latest given up, retracted set or taken back.

    Anything else about members that the server owns is ignored. StacInvalid where a flag is neither true nor false,
    Conflict where latest is claimed and would not be so.
    """
    findings = [
        Finding("type", f"/properties/{name}", f"`{name}` is true or false, and not {str(properties[name])[:80]!r}")
        for name in ("latest", "retracted") if not isinstance(properties.get(name), bool | None)
    ]  # fmt: skip
    if findings:
        raise StacInvalid(findings[0].message, findings=findings)
    actions = set()
    if record.claims_latest and properties.get("latest") is False and properties.get("retracted") is not True:
        actions.add(Action.SUPERSEDE)
    if not record.is_retracted and properties.get("retracted") is True:
        actions.add(Action.RETRACT)
    if record.is_retracted and properties.get("retracted") is False:
        actions.add(Action.REINSTATE)
    claims_latest = properties.get("latest") is True and not record.latest
    if claims_latest and not _with_flags(record, lineage, frozenset(actions)).latest:
        raise Conflict(f"{record.id} is not the latest version; `latest` follows from the versions")
    return frozenset(actions)


def _with_flags(record: Record, lineage: Lineage, actions: frozenset[Action]) -> Record:
    """Return the record after those of the actions that change its flags."""
    if Action.RETRACT in actions:
        return versions.retract(record, retraction.WITHOUT_REASON)
    if Action.REINSTATE in actions:
        return versions.reinstate(record, lineage)
    return versions.supersede(record) if Action.SUPERSEDE in actions else record


def check_identity(before: Json, after: Json, vocabulary: Vocabulary | None) -> None:
    """Raise StacInvalid where anything that the id stands for changes, by whatever spelling."""
    findings = [
        Finding("identity", f"/{name}", f"`{name}` is what the dataset is known by; it stays {str(before[name])!r}",
                suggestion=str(before[name]))
        for name in ("id", "collection", "type") if after.get(name) != before.get(name)
    ]  # fmt: skip
    names = ("version", "base_id", *(vocabulary.id_template.names if vocabulary else ()))
    for name in dict.fromkeys(names):
        old, new = before["properties"].get(name), after["properties"].get(name)
        if old != new:
            message = f"`{name}` is part of what the dataset is known by; it stays {str(old)[:80]!r}"
            findings.append(Finding("identity", pointer("properties", name), message))
    if findings:
        raise StacInvalid(f"{before['id']} would no longer be itself: {findings[0].message}", findings=findings)
