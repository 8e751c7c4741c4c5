"""What happens when someone changes a dataset that is there: patched, replaced as a whole, its replicas, its flags.

An edit is applied to the stored document under the lock and classified by the difference that it makes, never by what
it claims; the permissions that are needed follow from the difference (publication.md, Actions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from fedstac.domain import documents, events, retraction, stac_versions, strict_json, validation, versions
from fedstac.domain.actions.target import Target, find, touched_by
from fedstac.domain.errors import BodyTooLarge, Conflict, Finding, Severity, StacInvalid, errors_in
from fedstac.domain.model import Change, Decision, Draft, Lineage, Outcome, Record, State, World
from fedstac.domain.patching import Edit, Whole
from fedstac.domain.policy import AMENDING, Action, Principal
from fedstac.domain.rules import pointer
from fedstac.domain.vocabulary import Vocabulary

Json = Mapping[str, Any]
MOST_BYTES: Final = 4 << 20  # of an item
FILE: Final = ("file:checksum", "file:size")
COPIED: Final = ("file:size", "file:checksum", "type")  # into alternates: a downloader reads one only
# What is announced, and what became of it: of several actions at once, the first of these.
TOLD: Final[tuple[tuple[Action, str, Outcome], ...]] = (
    (Action.RETRACT, events.RETRACTED, Outcome.RETRACTED),
    (Action.REINSTATE, events.REINSTATED, Outcome.REINSTATED),
    (Action.REPLACE, events.REPLACED, Outcome.REPLACED),
    (Action.SUPERSEDE, events.SUPERSEDED, Outcome.SUPERSEDED),
    (Action.UPDATE, events.UPDATED, Outcome.UPDATED),
    (Action.REPLICATE, events.REPLICATED, Outcome.REPLICATED),
    (Action.ANNOTATE, events.ANNOTATED, Outcome.ANNOTATED),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """What an edit does: the actions, the nodes whose entries it touches, and the nodes of the assets it changes."""

    actions: frozenset[Action]
    nodes: frozenset[str] = frozenset()
    holders: frozenset[str] = frozenset()

    def touched_by(self, action: Action) -> frozenset[str]:
        """The nodes on which an action of it needs the right too, where rights are held by node."""
        if action is Action.REPLICATE:
            return self.nodes
        return self.holders if action in (Action.UPDATE, Action.REPLACE) else frozenset()


@dataclass(frozen=True, slots=True)
class Amend:
    """An edit of the stored document."""

    target: Target
    principal: Principal
    edit: Edit
    cv_version: str | None = None  # the newest when the request was accepted
    override: str | None = None  # the reason for other files under the same version
    expected: tuple[str, ...] | None = None  # entity tags (If-Match)
    node: str | None = None  # whose replicas alone the edit is about

    def decide(self, lineage: Lineage, world: World) -> Decision:
        """One change, or none where nothing differs. Every Problem leaves everything as it is.

        Whoever may change nothing of the dataset is refused before the edit is looked at, one without effect too.
        """
        stored = find(self.target, self.principal, lineage, world, self.expected)
        known: dict[str, Any] = orjson.loads(stored.document or "{}")
        self._permit_some(stored, known, world)
        wanted, upgrades = stac_versions.upgraded(_shaped(self.edit.applied(_patchable(known, stored))))
        flags = frozenset() if isinstance(self.edit, Whole) else _flags(stored, lineage, wanted["properties"])
        if not wanted["assets"] and (Action.RETRACT in flags or stored.state is State.RETRACTED):
            wanted = {**wanted, "assets": known["assets"]}  # ESGF's publisher empties them; the files stay known
        if self.override:
            wanted = _without_contradicting(wanted)
        if isinstance(self.edit, Whole):
            wanted = with_alternates(known, wanted)
        kept = completed(known, documents.owned(wanted))
        vocabulary = self._vocabulary(stored, world, newest=True)
        _check_identity(known, kept, vocabulary)
        difference = difference_between(known, kept)
        self._permit(stored, known, difference, flags, world, vocabulary)
        if Action.REPLACE in difference.actions:
            kept = _without_stale(kept)
        actions = difference.actions | flags
        if not actions:
            return Decision(Outcome.IDENTICAL)
        draft: Draft | None = None
        allowed: tuple[Finding, ...] = ()
        version = stored.cv_version
        if difference.actions:
            written = bool(difference.actions & {Action.UPDATE, Action.REPLACE})
            vocabulary = self._vocabulary(stored, world, newest=written)
            draft, allowed = judged(stored, kept, vocabulary, world)
            version = vocabulary.version if vocabulary else None
        decision = self._decision(stored, lineage, world, actions, draft, allowed, version)
        unexplained = (retraction.unexplained(),) if Action.RETRACT in flags else ()
        return replace(decision, warnings=(*upgrades, *decision.warnings, *unexplained))

    def _vocabulary(self, stored: Record, world: World, *, newest: bool) -> Vocabulary | None:
        """What the publisher wrote is judged with the newest; what is only carried along keeps the record's own."""
        return world.vocabulary(stored.collection, self.cv_version if newest else stored.cv_version)

    def _permit_some(self, stored: Record, known: Json, world: World) -> None:
        """MissingPermission where the caller may not make a single change of the dataset by such an edit."""
        touched = touched_by(stored, known, self._vocabulary(stored, world, newest=False))
        if self.node is not None:
            world.policy.require(self.principal, Action.REPLICATE, replace(touched, nodes=frozenset((self.node,))))
        else:
            world.policy.require_one_of(self.principal, AMENDING, touched)

    def _permit(
        self, stored: Record, known: Json, difference: Difference, flags: frozenset[Action], world: World,
        vocabulary: Vocabulary | None,
    ) -> None:  # fmt: skip
        """Each action of the difference by itself. MissingPermission or Conflict where one is not allowed."""
        touched = touched_by(stored, known, vocabulary)
        for action in sorted(difference.actions | flags):
            world.policy.require(self.principal, action, replace(touched, nodes=difference.touched_by(action)))
        if stored.state is State.RETRACTED and (difference.actions - {Action.ANNOTATE}):
            raise Conflict(f"{stored.id} is retracted; reinstate it before it is changed")
        if Action.REPLACE in difference.actions and not self.override:
            raise Conflict(
                f"other files for {stored.id}: files never change under a version; publish a new version, or say why "
                f"in the header Fedstac-Override"
            )

    def _decision(
        self, stored: Record, lineage: Lineage, world: World, actions: frozenset[Action], draft: Draft | None,
        allowed: tuple[Finding, ...], version: str | None,
    ) -> Decision:  # fmt: skip
        [(event, outcome), *_] = [(event, outcome) for action, event, outcome in TOLD if action in actions]
        after = replace(flagged(stored, lineage, actions), cv_version=version)
        if draft is not None:
            after = replace(
                after, document=draft.text, document_digest=draft.document_digest, files_digest=draft.files_digest,
                replicas=draft.replicas,
                cv_excused=validation.excusal(allowed),
            )  # fmt: skip
        reason = self.override if Action.REPLACE in actions else None
        change = Change(event, stored, after, draft, reason=reason, actions=tuple(sorted(actions)))
        return Decision(outcome, versions.changes(change, lineage, world), allowed)


def _patchable(known: Json, stored: Record) -> dict[str, Any]:
    """The document as a patch sees it: what was written, with the server's state."""
    return {**known, "properties": {**known["properties"], **documents.state_of(stored)}}


def _shaped(wanted: Any) -> dict[str, Any]:
    """StacInvalid where an edit leaves no item behind."""
    if isinstance(wanted, dict):
        kinds = {"properties": dict, "assets": dict, "links": list, "id": str, "collection": str}
        wrong = [name for name, kind in kinds.items() if not isinstance(wanted.get(name), kind)]
        wrong += [] if wrong or all(isinstance(asset, dict) for asset in wanted["assets"].values()) else ["assets"]
        links_are_links = isinstance(wanted.get("links"), list) and all(
            isinstance(link, dict) and isinstance(link.get("rel"), str) for link in wanted["links"]
        )
        wrong += [] if links_are_links else ["links"]
        extensions = wanted.get("stac_extensions", [])
        strings = isinstance(extensions, list) and all(isinstance(uri, str) for uri in extensions)
        wrong += [] if strings else ["stac_extensions"]
    else:
        wrong = [""]
    if wrong:
        findings = [Finding("shape", pointer(name) if name else "", "what is left is no STAC Item") for name in wrong]
        raise StacInvalid(
            f"the change leaves no STAC Item behind; keep its {', '.join(wrong) or 'members'}", findings=findings
        )
    text = orjson.dumps(wanted)
    if len(text) > MOST_BYTES:
        raise BodyTooLarge(f"the change makes {len(text)} bytes of the item; {MOST_BYTES} are the most, so add less")
    strict_json.parse(text)  # as deep as what is posted, and no deeper
    return dict(wanted)


def _flags(stored: Record, lineage: Lineage, properties: Json) -> frozenset[Action]:
    """Latest given up, retracted set or taken back; anything else about what the server owns says nothing.

    StacInvalid where a flag is neither true nor false, Conflict where latest is claimed and would not be so.
    """
    findings = [
        Finding("type", f"/properties/{name}", f"`{name}` is true or false, and not {str(properties[name])[:80]!r}")
        for name in ("latest", "retracted") if not isinstance(properties.get(name), bool | None)
    ]  # fmt: skip
    if findings:
        raise StacInvalid(findings[0].message, findings=findings)
    actions = set()
    if stored.claims_latest and properties.get("latest") is False and properties.get("retracted") is not True:
        actions.add(Action.SUPERSEDE)
    if stored.state is State.PUBLISHED and properties.get("retracted") is True:
        actions.add(Action.RETRACT)
    if stored.state is State.RETRACTED and properties.get("retracted") is False:
        actions.add(Action.REINSTATE)
    claims_latest = properties.get("latest") is True and not stored.latest
    if claims_latest and not flagged(stored, lineage, frozenset(actions)).latest:
        raise Conflict(f"{stored.id} is not the latest version; `latest` follows from the versions")
    return frozenset(actions)


def flagged(stored: Record, lineage: Lineage, actions: frozenset[Action]) -> Record:
    """The record with its flags after actions; a reinstated one is latest only if it may be (versions.py)."""
    if Action.RETRACT in actions:
        return replace(stored, state=State.RETRACTED, latest=False, claims_latest=False, retraction="{}")
    if Action.REINSTATE in actions:
        latest = versions.may_be_latest(stored, lineage)
        return replace(stored, state=State.PUBLISHED, latest=latest, claims_latest=latest, retraction=None)
    if Action.SUPERSEDE in actions:
        return replace(stored, latest=False, claims_latest=False, superseded=True)
    return stored


def _check_identity(known: Json, kept: Json, vocabulary: Vocabulary | None) -> None:
    """Nothing that the id stands for changes, by whatever spelling."""
    findings = [
        Finding("identity", f"/{name}", f"`{name}` is what the dataset is known by; it stays {str(known[name])!r}",
                suggestion=str(known[name]))
        for name in ("id", "collection", "type") if kept.get(name) != known.get(name)
    ]  # fmt: skip
    names = ("version", "base_id", *(vocabulary.id_template.names if vocabulary else ()))
    for name in dict.fromkeys(names):
        before, after = known["properties"].get(name), kept["properties"].get(name)
        if before != after:
            message = f"`{name}` is part of what the dataset is known by; it stays {str(before)[:80]!r}"
            findings.append(Finding("identity", pointer("properties", name), message))
    if findings:
        raise StacInvalid(f"{known['id']} would no longer be itself: {findings[0].message}", findings=findings)


def difference_between(known: Json, kept: Json) -> Difference:
    """The actions that lead from one document to the other, and the nodes whose alternates differ."""
    if not _differ(known, kept):
        return Difference(frozenset())
    actions, nodes, holders = set(), set(), set[str]()
    for key in known["assets"].keys() | kept["assets"].keys():
        before, after = known["assets"].get(key), kept["assets"].get(key)
        if not _differ(before, after):
            continue
        old, new = _alternates(before), _alternates(after)
        if before is not None and after is not None:
            nodes |= {node for node in old.keys() | new.keys() if _differ(old.get(node), new.get(node))}
        else:
            nodes |= old.keys() | new.keys()
        if _differ(_file(before), _file(after)):
            actions.add(Action.REPLACE)
        if _differ(_less_alternate(before), _less_alternate(after)):
            actions.add(Action.UPDATE)
            holders |= _holder(before) | _holder(after)
    if nodes:
        actions.add(Action.REPLICATE)
    if _differ(known["links"], kept["links"]):
        actions.add(Action.ANNOTATE)
    if _differ({**known, "assets": None, "links": None}, {**kept, "assets": None, "links": None}):
        actions.add(Action.UPDATE)
    return Difference(frozenset(actions), frozenset(nodes), frozenset(holders))


def _differ(one: object, other: object) -> bool:
    """By their JSON, as digests do: to Python 1, 1.0 and true are the same."""
    if one is other:
        return False
    sort = orjson.OPT_SORT_KEYS
    return orjson.dumps(one, option=sort) != orjson.dumps(other, option=sort)


def _holder(asset: Json | None) -> frozenset[str]:
    """The node that holds an asset, as it says itself."""
    node = asset.get("alternate:name") if asset else None
    return frozenset((node,)) if isinstance(node, str) else frozenset()


def _alternates(asset: Json | None) -> Json:
    found = asset.get("alternate") if asset else None
    return found if isinstance(found, dict) else {}


def _less_alternate(asset: Json | None) -> Json | None:
    return {name: value for name, value in asset.items() if name != "alternate"} if asset is not None else None


def _file(asset: Json | None) -> tuple[object, ...] | None:
    """What makes a file the one it is. An aggregation (kerchunk) is made of files and is none."""
    if asset is None or documents.is_aggregation(asset):
        return None
    found = (*(asset.get(name) for name in FILE), documents.tracking_id(asset))
    return found if any(found) else None


def with_alternates(known: Json, wanted: Json) -> dict[str, Any]:
    """A whole document says nothing about other nodes' entries that it does not name: they are kept."""
    assets = dict(wanted["assets"])
    for key, asset in known["assets"].items():
        alternates, now = _alternates(asset), assets.get(key)
        if alternates and isinstance(now, dict):
            assets[key] = {**now, "alternate": {**alternates, **_alternates(now)}}
    return {**wanted, "assets": assets}


def without_alternates(document: Json) -> dict[str, Any]:
    return {**document, "assets": {key: _less_alternate(asset) for key, asset in document["assets"].items()}}


def completed(known: Json, kept: Json) -> dict[str, Any]:
    """Size, checksum and type are copied into new alternates; an alternate with others is no replica."""
    assets, findings = dict(kept["assets"]), []
    for key, asset in kept["assets"].items():
        alternates, before = _alternates(asset), _alternates(known["assets"].get(key))
        changed = {node: entry for node, entry in alternates.items() if entry != before.get(node)}
        if not changed and not ("alternate" in asset and not alternates):
            continue
        filled = dict(alternates)
        for node, entry in changed.items():
            if not isinstance(entry, dict):
                continue  # the schema says it
            given = {name: asset[name] for name in COPIED if name in asset}
            filled[node] = {**given, "alternate:name": node, **entry}
            findings += [
                Finding("replica", pointer("assets", key, "alternate", node, name),
                        f"`{name}` is {str(entry[name])[:80]!r}, and {str(asset.get(name))[:80]!r} in the original")
                for name in FILE if name in entry and entry[name] != asset.get(name)
            ]  # fmt: skip
        assets[key] = {**asset, "alternate": filled}
        if not filled:
            del assets[key]["alternate"]
    if findings:
        raise StacInvalid(f"a replica has the original's files: {findings[0].message}", findings=findings[:100])
    return {**kept, "assets": assets}


def _without_contradicting(wanted: Json) -> dict[str, Any]:
    """Where other files come, replicas of the old ones may still be in what is sent: said twice, it is no fault."""
    assets = {}
    for key, asset in wanted["assets"].items():
        alternates = _alternates(asset)
        left = {node: entry for node, entry in alternates.items() if not _contradicts(entry, asset)}
        assets[key] = {**asset, "alternate": left} if len(left) < len(alternates) else asset
    return {**wanted, "assets": assets}


def _contradicts(entry: object, asset: Json) -> bool:
    return isinstance(entry, dict) and any(name in entry and entry[name] != asset.get(name) for name in FILE)


def _without_stale(kept: Json) -> dict[str, Any]:
    """After other files came, replicas of the old ones are none any more."""
    assets = {}
    for key, asset in kept["assets"].items():
        fresh = {node: entry for node, entry in _alternates(asset).items()
                 if isinstance(entry, dict) and all(entry.get(name) == asset.get(name) for name in FILE)}  # fmt: skip
        assets[key] = {**(_less_alternate(asset) or {}), **({"alternate": fresh} if fresh else {})}
    return {**kept, "assets": assets}


def judged(
    stored: Record, kept: Json, vocabulary: Vocabulary | None, world: World
) -> tuple[Draft, tuple[Finding, ...]]:
    """The new document as a draft, and as warnings the errors that the stored one has too. StacInvalid for others."""
    draft, findings = world.judge.draft(kept, stored.collection, vocabulary)
    return draft, excused(errors_in(findings), stored, vocabulary, world)


def excused(
    held: Sequence[Finding], stored: Record, vocabulary: Vocabulary | None, world: World
) -> tuple[Finding, ...]:
    """Errors held against a document, as warnings: the stored one has them all. StacInvalid where it has not."""
    if not held:
        return ()
    now = validation.excused(held, world.judge.stored(stored.document or "", stored.collection, vocabulary))
    if errors_in(now):
        raise validation.refusal_of(stored.id, now)
    return tuple(finding for finding in now if finding.severity is Severity.WARNING)


def replica_edit(entries: Mapping[str, Json], node: str) -> Sequence[Mapping[str, Any]]:
    """The operations that make one node's entries of a dataset those which are given, by asset."""
    return [
        {"op": "add", "path": pointer("assets", key, "alternate", node), "value": {**entry, "alternate:name": node}}
        for key, entry in entries.items()
    ]
