"""Which version of a lineage is the latest, and what a change of one version brings along for the others.

Order is that of the versions as numbers; "newest" compares with all versions that ever were, tombstones included.
"""

from __future__ import annotations

from dataclasses import replace

from fedstac.domain import events
from fedstac.domain.model import Change, Lineage, Record, State, World
from fedstac.domain.policy import Action, Level

PROMOTE = "promote"  # what an event says of a version that is latest again


def retract(record: Record, retraction: str) -> Record:
    """Return the record as retracted. `retraction` is JSON text (domain/retraction.py)."""
    state = State.RETRACTED if record.quarantine is None else State.QUARANTINED
    return replace(record, state=state, latest=False, claims_latest=False, retraction=retraction)


def reinstate(record: Record, lineage: Lineage) -> Record:
    """Return the record without its retraction; it is latest only if it may be."""
    return restore(replace(record, retraction=None), lineage)


def restore(record: Record, lineage: Lineage) -> Record:
    """Return the record in the state that its members say: in quarantine, retracted, or published.

    What a mark for deletion or a quarantine covered comes back so. It is latest only if it may be.
    """
    if record.quarantine is not None:
        return replace(record, state=State.QUARANTINED, latest=False, claims_latest=False)
    if record.retraction is not None:
        return replace(record, state=State.RETRACTED, latest=False, claims_latest=False)
    latest = may_be_latest(record, lineage)
    return replace(record, state=State.PUBLISHED, latest=latest, claims_latest=latest)


def at_level(record: Record, lineage: Lineage, level: Level) -> Record:
    """Return the record with an access level. What becomes private is not latest; what was private may be latest."""
    if level is record.access:
        return record
    after = replace(record, access=level)
    if level is not Level.PRIVATE and record.access is not Level.PRIVATE:
        return after
    latest = after.state is State.PUBLISHED and may_be_latest(after, lineage)
    return replace(after, latest=latest, claims_latest=latest)


def predecessor(version: int | None, lineage: Lineage) -> Record | None:
    """Return the version before one that is new, in whatever state; before the first one, the first. None without any.

    What a new version does not say of its access, this one says.
    """
    older = [each for each in lineage.records.values() if (each.version or 0) < (version or 0)]
    if older:
        return max(older, key=lambda record: record.version or 0)
    return min(lineage.records.values(), key=lambda record: record.version or 0, default=None)


def supersede(record: Record) -> Record:
    """Return the record as given up by its publisher: never latest again by itself."""
    return replace(record, latest=False, claims_latest=False, superseded=True)


def is_newest(version: int | None, lineage: Lineage) -> bool:
    """Tell whether no version is higher, in whatever state.

    One that was cleared counts as never there, and so does a private one: nobody is to learn of it.
    """
    return all(
        (version or 0) >= (record.version or 0)
        for record in lineage.records.values()
        if record.state is not State.CLEARED and record.access is not Level.PRIVATE
    )


def may_be_latest(record: Record, lineage: Lineage) -> bool:
    """Tell whether a version that comes back is the latest: the newest of all, and not given up by its publisher.

    A private one never is: nothing that others see follows from it.
    """
    return not record.superseded and record.access is not Level.PRIVATE and is_newest(record.version, lineage)


def changes(change: Change, lineage: Lineage, world: World) -> tuple[Change, ...]:
    """Return a change with those that it brings along, in the order in which they are written and announced.

    Another version that was the latest is demoted before. Where a retraction, a mark or a level takes the latest away
    and the project wants it (promote_previous), the version before is promoted after. Where the latest is cleared, it
    counts as never there: the version before is promoted in every project, if it may be the latest.
    """
    demoted = _demotion(lineage, world, by=change.after.id) if change.after.latest else ()
    lineage = lineage.after(demoted)
    own = alone(change, lineage, world)
    gives_up_latest = (
        change.before is not None and change.before.latest
        and (change.after.state is not State.PUBLISHED or change.after.access is Level.PRIVATE)
    )  # fmt: skip
    if not gives_up_latest:
        return (*demoted, own)
    previous = _previous(lineage := lineage.after((own,)))
    is_wanted = world.policy.promotes(own.after.collection) or (
        own.after.state is State.CLEARED and previous is not None and may_be_latest(previous, lineage)
    )
    if previous is None or not is_wanted:
        return (*demoted, own)
    return (*demoted, own, _promotion(previous, lineage, world, instead_of=own.after))


def alone(change: Change, lineage: Lineage, world: World) -> Change:
    """Return a change at its place in the lineage, with nothing that it brings along for other versions."""
    return replace(change, after=_next(change.after, lineage, world))


def action_of(change: Change) -> str:
    """Return what a change does that another version's change brought along."""
    return PROMOTE if change.after.latest else Action.SUPERSEDE


def _demotion(lineage: Lineage, world: World, *, by: str) -> tuple[Change, ...]:
    old = lineage.latest
    if old is None or old.id == by:
        return ()
    after = _next(replace(old, latest=False, claims_latest=False), lineage, world)
    return (Change(events.SUPERSEDED, old, after, reason=f"superseded by {by}"),)


def _previous(lineage: Lineage) -> Record | None:
    """Return the highest version that could stand in for the latest; None without one."""
    candidates = [
        record
        for record in lineage.records.values()
        if record.is_found and record.state is State.PUBLISHED and not record.superseded
    ]
    return max(candidates, key=lambda record: record.version or 0, default=None)


def _promotion(previous: Record, lineage: Lineage, world: World, *, instead_of: Record) -> Change:
    after = _next(replace(previous, latest=True, claims_latest=True), lineage, world)
    what = instead_of.state if instead_of.state is not State.PUBLISHED else instead_of.access
    reason = f"latest again: {instead_of.id} is {what}"
    return Change(events.UPDATED, previous, after, reason=reason, actions=(PROMOTE,))


def _next(record: Record, lineage: Lineage, world: World) -> Record:
    return replace(record, epoch=world.epoch, seq=lineage.seq + 1, updated=world.now)
