"""What notifications say: facts in, a message out. Pure.

Names come from whoever published: everything that is shown is one line of printable characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fedstac.domain.errors import Finding
from fedstac.domain.model import State, rfc3339

SHOWN = 20  # requests, items, findings or changes in one message
LONGEST_LINE, LONGEST_SUBJECT = 500, 150
SLACK_BLOCK, SLACK_BLOCKS = 2900, 20  # characters of a section, sections of a message


@dataclass(frozen=True, slots=True)
class Message:
    """One message in all of its forms: `subject` and `lines` for people, `type` and `data` for programs."""

    type: str
    subject: str
    lines: tuple[str, ...]
    data: Mapping[str, Any]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def as_json(self, at: datetime) -> dict[str, Any]:
        """Return the body of a webhook (Standard Webhooks 1.0: type, timestamp, data)."""
        return {"type": self.type, "timestamp": rfc3339(at), "data": self.data}

    def as_slack(self) -> dict[str, Any]:
        """Return the body that Slack and its like take: plain text, so that no name is read as a command."""
        whole = self.text.strip()
        parts = [whole[start : start + SLACK_BLOCK] for start in range(0, len(whole), SLACK_BLOCK)][:SLACK_BLOCKS]
        sections = [
            {"type": "section", "text": {"type": "plain_text", "text": part, "emoji": False}} for part in parts if part
        ]
        header = {"type": "header", "text": {"type": "plain_text", "text": self.subject, "emoji": False}}
        escaped = self.subject.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return {"text": escaped, "blocks": [header, *sections]}


def one_line(text: object, longest: int = LONGEST_LINE) -> str:
    """Return text from elsewhere as one line that nothing reads as a command or a header."""
    line = "".join(char if char.isprintable() else "\ufffd" for char in str(text)[: longest + 1])
    return line if len(line) <= longest else line[: longest - 1] + "…"


@dataclass(frozen=True, slots=True)
class Sender:
    """The node that sends, and the address of its API; without one, messages have no links."""

    node: str
    base: str

    def request(self, id: object) -> str | None:
        return f"{self.base}/requests/{id}" if self.base else None

    def dataset(self, collection: str, id: str) -> str | None:
        return f"{self.base}/collections/{quote(collection)}/items/{quote(id)}" if self.base else None

    def subscription(self, name: str) -> str | None:
        return f"{self.base}/subscriptions/{quote(name)}" if self.base else None

    def message(self, type: str, subject: str, lines: Sequence[str | None], data: Mapping[str, Any]) -> Message:
        printable = tuple(one_line(line) for line in lines if line is not None)
        whole = one_line(f"fedstac {self.node}: {subject}", LONGEST_SUBJECT)
        return Message(type, whole, printable, {"node": self.node, **data})


def _and_more(n: int, what: str) -> str | None:
    return f"… and {n - SHOWN} more {what}" if n > SHOWN else None


@dataclass(frozen=True, slots=True)
class FinalRequest:
    """A request that is final."""

    id: str
    collection: str
    action: str
    total: int
    counts: Mapping[str, int]

    @property
    def status(self) -> str:
        """As the request itself shows it (db/requests.py, Summary)."""
        final = [status for status in ("done", "rejected", "failed") if self.counts.get(status)]
        return final[0] if len(final) == 1 else "partly" if "done" in final else "failed"


@dataclass(frozen=True, slots=True)
class RefusedItem:
    """An item of a request that was not done."""

    request: str
    dataset: str
    status: str
    problem: str
    detail: str
    findings: Sequence[Finding]


def of_requests(sender: Sender, requests: Sequence[FinalRequest], refused_items: Sequence[RefusedItem]) -> Message:
    """Return the digest of final requests; `refused_items` are the first items that were not done, at most SHOWN."""
    counts = {name: sum(each.counts.get(name, 0) for each in requests) for name in ("done", "rejected", "failed")}
    outcome = ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "nothing to do"
    what = f"request {requests[0].status}" if len(requests) == 1 else f"{len(requests)} requests final"
    lines: list[str | None] = []
    for each in requests[:SHOWN]:
        outcomes = ", ".join(f"{n} {name}" for name, n in each.counts.items() if n)
        lines += [
            f"{each.status}: {each.action} of {each.total} in {each.collection} ({outcomes})",
            _indented(sender, each.id),
        ]
    lines.append(_and_more(len(requests), "requests"))
    if refused_items:
        lines += ["", "Not done:", *_refusals(refused_items), *_remedy(counts)]
    data = {
        "counts": counts,
        "total_requests": len(requests),
        "requests": [
            {"id": each.id, "status": each.status, "action": each.action, "collection": each.collection,
             "total": each.total, "counts": each.counts, "url": sender.request(each.id)}
            for each in requests[:SHOWN * 5]
        ],
        "problems": [
            {"request": each.request, "id": each.dataset, "status": each.status, "type": each.problem,
             "detail": each.detail, "findings": [finding.as_json() for finding in each.findings[:SHOWN]]}
            for each in refused_items
        ],
    }  # fmt: skip
    return sender.message("fedstac.requests.final", f"{what} ({outcome})", lines, data)


def _indented(sender: Sender, request: str) -> str:
    return f"  {sender.request(request) or 'fedstac requests show ' + request}"


def _refusals(items: Sequence[RefusedItem]) -> list[str]:
    lines, findings_left = [], SHOWN
    for each in items:
        says_finding = bool(each.findings and findings_left) and each.findings[0].message in each.detail
        detail = "" if says_finding else f" {each.detail}"
        lines.append(f"- {each.dataset}:{detail} [{each.problem or each.status}]")
        for finding in each.findings[:findings_left]:
            near = finding.suggestion if finding.suggestion and finding.suggestion not in finding.message else None
            suggestion = f" (suggestion: {near})" if near else ""
            lines.append(f"    {finding.pointer or '/'}: {finding.message}{suggestion}")
        findings_left -= min(findings_left, len(each.findings))
    return lines


def _remedy(counts: Mapping[str, int]) -> list[str]:
    lines = [""]
    more = counts["rejected"] + counts["failed"] - SHOWN
    if more > 0:
        lines.append(f"{more} more items were not done; the request's page lists all of them.")
    if counts["rejected"]:
        lines.append("Rejected items: correct what is named and send them again; what was done stays done.")
    if counts["failed"]:
        lines.append("Failed items: this is the server's fault. Its operators are told; send them again later.")
    return lines


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that operators have to see to, and where.

    An item that failed by the server's fault (where: its request), an event that a node could not apply, a sink, …
    """

    kind: str  # item, event, or of WORDINGS
    where: str
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class TroubleWording:
    """How troubles of one kind are told: what they are, the line above them, and what to do."""

    noun: str
    heading: str
    remedy: str


WORDINGS: Mapping[str, TroubleWording] = {
    "sink": TroubleWording(
        "sinks that get nothing", "Sinks that get nothing any more:",
        "Mend the cause, then `fedstac sink resume`; of one that has lapsed, `fedstac sink seek`.",
    ),
    "dead-letter": TroubleWording(
        "dead letters", "Events that a sink refused (`fedstac dead-letter list`):",
        "Mend the cause, then `fedstac dead-letter redrive`, or discard them.",
    ),
    "parked": TroubleWording(
        "parked events", "Events that a consumer here could not apply (`fedstac parked list`):",
        "Mend the cause, then `fedstac parked requeue`; a later event of the dataset mends it, too.",
    ),
    "backlog": TroubleWording(
        "backlogs of events", "Events that wait for too long; batches are refused when it gets worse:",
        "See `fedstac sink list`: mend the sink, or remove it. Of the sequencer, see its log.",
    ),
    "deletion": TroubleWording(
        "deletions that wait", "Marked datasets whose deletion waits for somebody (`fedstac deletion list --late`):",
        "Ask the node or service, then `fedstac deletion remind`, or `fedstac deletion waive` with a reason.",
    ),
    "deletion-refused": TroubleWording(
        "deletions that are refused", "Marked datasets that the deletion manager could not delete:",
        "See the request; with a policy file, the name manager:deletions needs a grant to delete.",
    ),
    "deletion-quarantined": TroubleWording(
        "deletions under quarantine", "Marked datasets that are ready, and that the schedule leaves to people:",
        "Who may quarantine decides: `fedstac delete`, or `fedstac unmark` and `fedstac release`.",
    ),
    "node": TroubleWording(
        "nodes that have lapsed", "Nodes for which nothing is kept any more:", "They take a snapshot anew."
    ),
    "replica-parked": TroubleWording(
        "parked replicas", "Replicas that this node cannot go on with:",
        "See `fedstac replica status DATASET`; mend the cause, then `fedstac replica retry DATASET`.",
    ),
    "replica-source": TroubleWording(
        "sources that disagree", "Files whose source has other content than the dataset says:",
        "They are taken from another source if there is one. Tell the operators of that node.",
    ),
    "replica-away": TroubleWording(
        "sources that stay away", "Sources that files cannot be fetched from:",
        "Their files wait, and go on by themselves. Ask their operators, or name another source in the policy.",
    ),
    "replica-disk": TroubleWording(
        "full disks of a replica node", "Replicas that wait for room on a disk:",
        "Make room or add a disk; they go on by themselves. `fedstac replica status` says what is still to come.",
    ),
    "replica-disk-broken": TroubleWording(
        "disks of a replica node that refuse", "Replicas that wait for a disk that refuses their files:",
        "See to the disk or the rights of the folder; transfers go on by themselves.",
    ),
    "replica-budget": TroubleWording(
        "budgets that are reached", "Replicas that wait since a budget is reached:",
        "Raise the budget in the policy file, or let a rule want less; they go on by themselves.",
    ),
    "replica-policy": TroubleWording(
        "replica policies that cannot be used", "Policy files that are not used; the last good one counts:",
        "See `fedstac replica policy check`; mend the file. The node reads it again by itself.",
    ),
    "replica-verify": TroubleWording(
        "verifications that stopped", "Verifications of a replica node that mend nothing:",
        "See whether all disks are mounted; then `fedstac replica verify --repair --force`.",
    ),
}  # fmt: skip


def _wording_of(kind: str) -> TroubleWording:
    return WORDINGS.get(
        kind, TroubleWording(f"troubles of a {kind}", f"Troubles of a {kind}:", "See `fedstac doctor`.")
    )


def of_troubles(sender: Sender, troubles: Sequence[Incident], total: int) -> Message:
    """Return the operators' alert; `total` counts also troubles that are no longer there to be described."""
    items = [each for each in troubles if each.kind == "item"]
    events = [each for each in troubles if each.kind == "event"]
    parts = [f"{len(items)} items failed"] if items else []
    parts += (
        [f"{len(events)} events could not be applied by {', '.join(sorted({e.where for e in events}))}"]
        if events
        else []
    )
    lines: list[str | None] = []
    if items:
        lines += ["Items that failed by the server's fault (its log names the reason):"]
        lines += [f"- {each.what}, request {each.where}" for each in items[:SHOWN]]
        lines += [_and_more(len(items), "items"), "Mend the cause, then have them sent again.", ""]
    if events:
        lines += ["Events that a node could not apply (its table fedstac.parked_event has them):"]
        lines += [f"- {each.where}: {each.what}: {each.detail}" for each in events[:SHOWN]]
        lines += [_and_more(len(events), "events"), "At that node: see its log, update it, then `fedstac verify`.", ""]
    others = [each for each in troubles if each.kind not in ("item", "event")]
    for kind in sorted({each.kind for each in others}):
        wording, own = _wording_of(kind), [each for each in others if each.kind == kind]
        parts.append(f"{wording.noun}: {len(own)}")
        lines += [wording.heading, *(f"- {each.where}: {each.what}: {each.detail}" for each in own[:SHOWN])]
        lines += [_and_more(len(own), "of these"), wording.remedy, ""]
    data = {
        "total": total,
        "troubles": [
            {"kind": each.kind, "where": each.where, "what": each.what, "detail": each.detail}
            for each in (*items[: SHOWN * 5], *events[: SHOWN * 5], *others[: SHOWN * 5])
        ],
    }
    return sender.message("fedstac.alert", "; ".join(parts) or f"{total} troubles", lines, data)


@dataclass(frozen=True, slots=True)
class DueDeletion:
    """What a dependency has to do for a marked dataset, and has not done."""

    id: str  # of the deletion
    collection: str
    dataset: str
    event_id: str  # of the mark: a report names it
    name: str  # of the dependency
    due: datetime
    state: str
    comment: str | None
    reminders: int


def of_due_deletions(sender: Sender, due: Sequence[DueDeletion], total: int) -> Message:
    """Return the reminder of a dependency's contact; `due` are the first of `total`."""
    names = ", ".join(sorted({each.name for each in due}))
    lines: list[str | None] = [f"These datasets are marked for deletion, and wait for {names}:"]
    for each in due[:SHOWN]:
        failure = f": {each.comment}" if each.state == "failed" and each.comment else ""
        lines += [
            f"- {each.dataset} ({each.name} {each.state}{failure}), due {rfc3339(each.due)}, reminder {each.reminders}",
            f"  {sender.base}/deletions/{each.id}" if sender.base else None,
        ]
    lines += [
        _and_more(total, "datasets"), "",
        "Do your part, then report it to /deletions/reports of this node: ok, failed or nothing to do.",
    ]  # fmt: skip
    data = {
        "total": total,
        "deletions": [
            {"id": each.id, "collection": each.collection, "dataset": each.dataset, "event_id": each.event_id,
             "name": each.name, "state": each.state, "due": rfc3339(each.due), "reminders": each.reminders,
             "url": f"{sender.base}/deletions/{each.id}" if sender.base else None}
            for each in due[: SHOWN * 5]
        ],
    }  # fmt: skip
    return sender.message("fedstac.deletions.due", f"{total} datasets wait to be deleted", lines, data)


@dataclass(frozen=True, slots=True)
class SubscriptionTrouble:
    """What its owner has to see to of a subscription that is sent to a webhook.

    reason: why nothing more is sent; None while events are sent. last_reason: of the last event that became a dead
    letter.
    """

    name: str
    reason: str | None
    has_ended: bool
    dead_letters: int
    last_reason: str | None

    @property
    def stand(self) -> str:
        """In one word, how it stands."""
        return "sent" if self.reason is None else "ended" if self.has_ended else "paused"


def of_subscriptions(sender: Sender, troubles: Sequence[SubscriptionTrouble]) -> Message:
    """Return the message about subscriptions to their owner."""
    stops = [each for each in troubles if each.reason is not None]
    with_letters = [each for each in troubles if each.dead_letters]
    lines: list[str | None] = []
    if stops:
        lines += ["Nothing more is sent to these subscriptions of yours:"]
        lines += [f"- {each.name} ({each.stand}): {each.reason}" for each in stops[:SHOWN]]
        lines += [
            _and_more(len(stops), "subscriptions"),
            "Mend the receiver, then put the subscription again: it goes on where it stopped.", "",
        ]  # fmt: skip
    if with_letters:
        lines += ["These subscriptions of yours have dead letters, events that were never taken:"]
        lines += [
            f"- {each.name}: {each.dead_letters}, the last one: {each.last_reason}" for each in with_letters[:SHOWN]
        ]
        lines += [
            _and_more(len(with_letters), "subscriptions"),
            "See them with `fedstac subscription dead-letters NAME`; `fedstac subscription redrive` sends one again.",
        ]
    parts = [f"{len(stops)} of your subscriptions get nothing"] if stops else []
    parts += [f"{sum(each.dead_letters for each in with_letters)} dead letters"] if with_letters else []
    data = {
        "total": len(troubles),
        "subscriptions": [
            {"name": each.name, "stand": each.stand, "reason": each.reason, "dead_letters": each.dead_letters,
             "last_reason": each.last_reason, "url": sender.subscription(each.name)}
            for each in troubles[: SHOWN * 5]
        ],
    }  # fmt: skip
    return sender.message("fedstac.subscriptions.troubled", "; ".join(parts), lines, data)


@dataclass(frozen=True, slots=True)
class DatasetChange:
    """A change of a dataset, as its event says it."""

    type: str
    collection: str
    dataset: str
    state: str
    actor: str
    reason: str | None
    at: datetime
    retraction: Mapping[str, str] = field(default_factory=dict)
    quarantine: Mapping[str, Any] = field(default_factory=dict)
    deletion: str | None = None  # of a mark, while it is open: the deletion that it began
    grace_until: datetime | None = None

    @property
    def verb(self) -> str:
        """org.fedstac.dataset.retracted.v1 → retracted; a type that is not of this form as it is."""
        parts = self.type.split(".")
        return parts[-2].replace("_", " ").replace("-", " ") if len(parts) > 2 else self.type


def of_changes(sender: Sender, changes: Sequence[DatasetChange], total: int) -> Message:
    """Return the message about changes that others made to somebody's datasets; `changes` are the first of `total`."""
    verbs = sorted({each.verb for each in changes})
    what = f"your dataset {changes[0].dataset} was {verbs[0]}" if total == 1 and changes else (
        f"{total} of your datasets were {' or '.join(verbs) or 'changed'}")  # fmt: skip
    lines: list[str | None] = ["Datasets that you published were changed by somebody else:"]
    for each in changes[:SHOWN]:
        replacement, errata = each.retraction.get("replaced_by"), each.retraction.get("errata")
        lines += [
            f"- {each.dataset}: {each.verb} by {each.actor} at {rfc3339(each.at)}"
            + (f": {each.reason}" if each.reason else ""),
            f"  {link}" if (link := sender.dataset(each.collection, each.dataset)) else None,
            f"  Use instead: {replacement}" if replacement else None,
            f"  {link}" if replacement and (link := sender.dataset(each.collection, replacement)) else None,
            f"  The fault is explained at {errata}" if errata else None,
            *_about_hiding(sender, each),
        ]
    lines += [_and_more(total, "changes"), "", "If that is not right, ask the operators of this node."]
    data = {
        "total": total,
        "changes": [
            {"type": each.type, "collection": each.collection, "id": each.dataset, "state": each.state,
             "actor": each.actor, "reason": each.reason, "at": rfc3339(each.at),
             "retraction": each.retraction or None, "quarantine": each.quarantine or None,
             "deletion": each.deletion, "url": sender.dataset(each.collection, each.dataset)}
            for each in changes
        ],
    }  # fmt: skip
    return sender.message("fedstac.datasets.changed", what, lines, data)


def _about_hiding(sender: Sender, change: DatasetChange) -> list[str]:
    """Return what a publisher can do about a quarantine, a mark, or a full-state load that cleared a dataset."""
    lines = []
    if change.quarantine:
        case, contact = change.quarantine.get("case"), change.quarantine.get("contact")
        about = f", case {case}" if case else ""
        lines.append(f"  Nobody gets its files until somebody decides{about}; ask {contact or 'the operators'}")
    if change.deletion is not None and change.grace_until is not None:
        place = f"{sender.base}/deletions/{change.deletion}" if sender.base else f"deletion {change.deletion}"
        until = rfc3339(change.grace_until)[:16].replace("T", " ")
        lines.append(f"  It is deleted once everybody has done their part, not before {until} UTC: {place}")
        lines.append(f"  Until then: fedstac unmark {change.dataset}")
    if change.state == State.CLEARED:
        lines.append("  No tombstone is left. It may be published again under the same id")
    return lines


def of_confirmation(sender: Sender, owner: str, destination: str, code: str) -> Message:
    """Return the first message to a destination, before anything else goes there."""
    lines = [
        f"{owner} asks for notifications of the node {sender.node} to be sent here.",
        "",
        f"To agree:  fedstac notifications confirm {destination} {code}",
        "To refuse, do nothing: nothing more will be sent.",
    ]
    data = {"destination": destination, "code": code}
    return sender.message("fedstac.confirmation", "confirm this destination", lines, data)


def of_test(sender: Sender) -> Message:
    """Return a message that only shows that messages arrive."""
    lines = [f"This is a test of the notifications of the node {sender.node}. They arrive here."]
    return sender.message("fedstac.test", "test", lines, {})
