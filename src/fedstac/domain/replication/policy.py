"""The policy of a replica node: which datasets it wants, where their files come from, how much may be here.

`ReplicaPolicy.parse` reads the YAML file (docs/replication.md, Policy file; policy_schema.py has its JSON Schema);
`decide` says what becomes of a dataset. A file that is not wholly understood is not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

from fedstac.domain import filters, plain_yaml
from fedstac.domain.errors import BadRequest
from fedstac.domain.facets import NODES
from fedstac.domain.model import State
from fedstac.domain.plain_yaml import YamlNode, YamlReader
from fedstac.domain.replication.budgets import Budgets, read_rate, read_size
from fedstac.domain.replication.calendar import DAYS, Calendar, Dates, Weekly, Window
from fedstac.domain.replication.choosing import HostPattern, Source, source_of
from fedstac.domain.replication.states import RESTRICTED_TIER
from fedstac.domain.truth import DatasetFacts, Test, compile_filter, facts_of
from fedstac.domain.wording import nearest

Json = Mapping[str, Any]
E = TypeVar("E", bound=StrEnum)
MAX_BYTES: Final = 256 << 10
DEEPEST: Final = 48  # of YAML: a filter in JSON has two levels for each operator
DEFAULT_TIER: Final = "default"  # the name of the served tree, FEDSTAC_REPLICA_FOLDER, in a file; "" in decisions
HIGHEST_PRIORITY: Final = 1000
MOST_CONNECTIONS: Final = 1000
MOST_RULES, MOST_SOURCES, MOST_WINDOWS = 200, 500, 200
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:-]{0,63}")
CLOCK: Final = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)
MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?", re.ASCII)
OF_EACH_NODE: Final = ("created", "updated", NODES)  # what a rule cannot ask for: each node has its own


class ReplicaAction(StrEnum):
    """What becomes of a dataset that a rule fits."""

    REPLICATE = "replicate"
    RESTRICT = "restrict"  # nothing is copied; what is here leaves the served tree and stays
    IGNORE = "ignore"  # it is kept in the local catalogue only


class OnSuperseded(StrEnum):
    """What becomes of the files when there is a newer version."""

    KEEP = "keep"
    TIER = "tier"  # they move to `superseded_tier`
    PURGE = "purge"


class OnRetracted(StrEnum):
    """What becomes of the files when the dataset is retracted; the event's own `data` wins where it is stricter."""

    KEEP = "keep"
    RESTRICT = "restrict"
    PURGE = "purge"


@dataclass(frozen=True, slots=True)
class ReplicaDecision:
    """What a policy wants of a dataset, and by which rule (None: no rule fits, so it is ignored).

    tier: "" is the served tree. check: a command and its arguments; empty for none.
    """

    action: ReplicaAction
    rule: str | None
    priority: int = 0
    tier: str = ""
    check: tuple[str, ...] = ()
    on_superseded: OnSuperseded = OnSuperseded.KEEP
    on_retracted: OnRetracted = OnRetracted.RESTRICT
    superseded_tier: str | None = None  # where on_superseded is tier


NO_RULE: Final = ReplicaDecision(ReplicaAction.IGNORE, None)


@dataclass(frozen=True, slots=True)
class ReplicaRule:
    """A rule: the datasets that it fits (`where`, a checked filter), and what becomes of them."""

    where: Any
    decision: ReplicaDecision
    budget: int | None = None  # bytes
    test: Test = field(compare=False, repr=False, default=lambda facts: True)

    @property
    def name(self) -> str:
        return self.decision.rule or ""


@dataclass(frozen=True, slots=True)
class ReplicaPolicy:
    """What a policy file says. tiers: folders by name, less the default one. digest: of the file, as hex SHA-256.

    names: the properties that rules ask for.
    """

    rules: tuple[ReplicaRule, ...] = ()
    sources: tuple[Source, ...] = ()
    tiers: Mapping[str, str] = field(default_factory=dict)
    budget_bytes: int | None = None
    digest: str = ""
    names: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str | bytes) -> ReplicaPolicy:
        """Read a policy file. PolicyBroken names line, key and remedy of every fault, up to twenty of them."""
        raw = text.encode() if isinstance(text, str) else text
        reader = _Reader()
        policy = reader.policy(plain_yaml.parse(raw, MAX_BYTES, DEEPEST), sha256(raw).hexdigest())
        reader.refuse_faults()
        return policy

    @property
    def budgets(self) -> Budgets:
        return Budgets(self.budget_bytes, {rule.name: rule.budget for rule in self.rules if rule.budget is not None})

    def decide(
        self, document: Json, collection: str, state: State = State.PUBLISHED, *, latest: bool = True
    ) -> ReplicaDecision:
        """Return what becomes of a dataset: what the first rule that fits says."""
        of_state = stated_properties(state, latest=latest)
        return self.decide_facts(facts_of({**document, "collection": collection}, self.names, properties=of_state))

    def decide_facts(self, facts: DatasetFacts) -> ReplicaDecision:
        """Return what becomes of a dataset of which these facts are known: those that `names` names."""
        return next((rule.decision for rule in self.rules if rule.test(facts)), NO_RULE)

    def source_of(self, href: object, node: str | None = None) -> Source | None:
        """Return the source that an address belongs to; None: nothing is ever fetched from it."""
        return source_of(self.sources, href, node)


def stated_properties(state: State, *, latest: bool) -> Json:
    """Return the properties that a search shows of a dataset's state."""
    is_retracted = state is State.RETRACTED
    return {"retracted": is_retracted, "latest": latest, "fedstac:state": state.value}


class _Reader(YamlReader):
    """Reads the form of the file."""

    def __init__(self) -> None:
        super().__init__()
        self._tier_names: tuple[str, ...] = (DEFAULT_TIER,)

    def policy(self, node: YamlNode, digest: str) -> ReplicaPolicy:
        members = self.members(node, "", ("version", "rules", "sources"), ("budget", "tiers"))
        if (version := members.get("version")) and (version.tag, version.value) != ("int", "1"):
            self.fault(version, "version", "is not 1, the only one there is")
        tiers = self._tiers(members.get("tiers"))
        self._tier_names = (DEFAULT_TIER, *tiers)
        rules = self.sequence(members.get("rules"), "rules", self._rule)
        sources = self.sequence(members.get("sources"), "sources", self._source)
        self._limit(members.get("rules"), "rules", rules, MOST_RULES)
        self._limit(members.get("sources"), "sources", sources, MOST_SOURCES)
        self._refuse_twins(members.get("rules"), "rules", [rule.name for rule in rules])
        self._refuse_twins(members.get("sources"), "sources", [source.name for source in sources])
        names = frozenset[str]().union(*(filters.names_in(rule.where) for rule in rules))
        budget = self._size(members["budget"], "budget") if "budget" in members else None
        return ReplicaPolicy(tuple(rules), tuple(sources), tiers, budget, digest, names)

    def _limit(self, node: YamlNode | None, path: str, entries: list[Any], most: int) -> None:
        if len(entries) > most:
            self.fault(node, path, f"has {len(entries)} entries; {most} are the most, so say more with one")

    def _refuse_twins(self, node: YamlNode | None, path: str, names: list[str]) -> None:
        for name in sorted({name for name in names if name and names.count(name) > 1}):
            self.fault(node, path, f"has two with the name {name!r}; give each its own")

    def _tiers(self, node: YamlNode | None) -> dict[str, str]:
        if node is None:
            return {}
        if node.tag != "map":
            self.fault(node, "tiers", "is no mapping; write `name: /folder`")
            return {}
        tiers: dict[str, str] = {}
        for key, value in node.value:
            name = self._name(key, "tiers")
            folder = self.text(value, f"tiers.{name}")
            if name in (DEFAULT_TIER, RESTRICTED_TIER):
                self.fault(key, "tiers", f"{name} is a tier that every node has; take another name")
            elif name in tiers:
                self.fault(key, "tiers", f"{name} stands there twice; give each tier its own name")
            elif folder and (not folder.startswith("/") or ".." in folder.split("/")):
                self.fault(value, f"tiers.{name}", "is no absolute path without `..`; write one such as /data/archive")
            tiers[name] = folder
        return tiers

    # --- rules ---

    def _rule(self, node: YamlNode, path: str) -> ReplicaRule:
        optional = ("where", "priority", "tier", "budget", "check", "on_superseded", "superseded_tier", "on_retracted")
        members = self.members(node, path, ("name", "action"), optional)
        name = self._name(members.get("name"), f"{path}.name")
        path = f"{path} ({name})" if name else path
        action = self._choice(members.get("action"), f"{path}.action", ReplicaAction, ReplicaAction.IGNORE)
        superseded = self._choice(
            members.get("on_superseded"), f"{path}.on_superseded", OnSuperseded, OnSuperseded.KEEP
        )
        retracted = self._choice(members.get("on_retracted"), f"{path}.on_retracted", OnRetracted, OnRetracted.RESTRICT)
        target = self._tier(members.get("superseded_tier"), f"{path}.superseded_tier")
        if (superseded is OnSuperseded.TIER) != (target is not None):
            self.fault(node, path, "needs `on_superseded: tier` and `superseded_tier` together; write both or neither")
        if action is not ReplicaAction.REPLICATE and (
            idle := [each for each in ("priority", "tier", "budget", "check") if each in members]
        ):
            self.fault(members[idle[0]], f"{path}.{idle[0]}", f"does nothing with `action: {action}`; take it out")
        where, test = self._where(members.get("where"), f"{path}.where")
        priority = self._whole(members.get("priority"), f"{path}.priority", -HIGHEST_PRIORITY, HIGHEST_PRIORITY)
        decision = ReplicaDecision(
            action, name, priority or 0, self._tier(members.get("tier"), f"{path}.tier") or "",
            self._command(members.get("check"), f"{path}.check"), superseded, retracted, target,
        )  # fmt: skip
        budget = self._size(members["budget"], f"{path}.budget") if "budget" in members else None
        return ReplicaRule(where, decision, budget, test)

    def _where(self, node: YamlNode | None, path: str) -> tuple[Any, Test]:
        """Return a filter and its test. One that is left out fits every dataset."""
        if node is None:
            return True, compile_filter(True)
        try:
            expression = filters.from_text(node.value) if node.tag == "str" else _plain(node)
            where = filters.check(expression)
            names = filters.names_in(where)
            for name in sorted(names & set(OF_EACH_NODE)):
                self.fault(node, path, f"asks for {name}, which differs from node to node; ask for another property")
            return where, compile_filter(where)
        except BadRequest as refusal:
            self.fault(node, path, f"is no filter that can be used: {refusal.detail}")
        except ValueError:
            self.fault(node, path, "has a number that cannot be read; write it in digits, or in quotes if it is a text")
        return False, compile_filter(False)

    def _tier(self, node: YamlNode | None, path: str) -> str | None:
        if node is None:
            return None
        name = self.text(node, path)
        if name and name not in self._tier_names:
            self.fault(node, path, f"{name!r} is no tier; there are {', '.join(self._tier_names)}; add it to `tiers`")
        return None if not name else "" if name == DEFAULT_TIER else name

    def _command(self, node: YamlNode | None, path: str) -> tuple[str, ...]:
        parts = self.sequence(node, path, self.text)
        if node is not None and node.tag == "seq" and (not parts or not parts[0].startswith("/")):
            self.fault(
                node, path, "needs the absolute path of a program first; write it as [/usr/bin/program, argument]"
            )
        return tuple(parts)

    # --- sources ---

    def _source(self, node: YamlNode, path: str) -> Source:
        optional = ("nodes", "preference", "bandwidth", "connections", "calendar", "private")
        members = self.members(node, path, ("name", "hosts"), optional)
        name = self._name(members.get("name"), f"{path}.name")
        path = f"{path} ({name})" if name else path
        hosts = [host for host in self.sequence(members.get("hosts"), f"{path}.hosts", self._host) if host is not None]
        if "hosts" in members and members["hosts"].tag == "seq" and not members["hosts"].value:
            self.fault(members["hosts"], f"{path}.hosts", "names no host; add one, or take the source out")
        private = self.flag(members["private"], f"{path}.private") if "private" in members else False
        if private and any(host.is_wild for host in hosts):
            self.fault(members["private"], f"{path}.private", "does not go with `*` in hosts; name each private host")
        nodes = frozenset(self.sequence(members.get("nodes"), f"{path}.nodes", self.text))
        if "nodes" in members and not nodes:
            self.fault(members["nodes"], f"{path}.nodes", "names no node; add one, or take `nodes` out for all of them")
        return Source(
            name, tuple(hosts), nodes,
            self._whole(members.get("preference"), f"{path}.preference", -HIGHEST_PRIORITY, HIGHEST_PRIORITY) or 0,
            self._rate(members["bandwidth"], f"{path}.bandwidth") if "bandwidth" in members else None,
            self._whole(members.get("connections"), f"{path}.connections", 1, MOST_CONNECTIONS),
            self._calendar(members["calendar"], f"{path}.calendar") if "calendar" in members else Calendar(), private,
        )  # fmt: skip

    def _host(self, node: YamlNode, path: str) -> HostPattern | None:
        text = self.text(node, path)
        pattern = HostPattern.parse(text)
        if text and pattern is None:
            self.fault(
                node, path, f"{text!r:.80} is no host; write data.example.org, '*.example.org', http://10.0.0.7:8080,"
                " s3://bucket, globus://collection or file:///folder"
            )  # fmt: skip
        return pattern

    def _calendar(self, node: YamlNode, path: str) -> Calendar:
        members = self.members(node, path, ("zone", "closed"), ())
        zone = self.text(members.get("zone"), f"{path}.zone")
        if zone and not _is_zone(zone):
            self.fault(
                members["zone"], f"{path}.zone", f"{zone!r:.80} is no time zone; write one such as Europe/Berlin"
            )
            zone = "UTC"
        windows = [each for each in self.sequence(members.get("closed"), f"{path}.closed", self._window) if each]
        self._limit(members.get("closed"), f"{path}.closed", windows, MOST_WINDOWS)
        calendar = Calendar(zone or "UTC", tuple(windows))
        if calendar.is_always_closed:
            self.fault(node, path, "leaves no minute of a week open; take the source out instead")
        return calendar

    def _window(self, node: YamlNode, path: str) -> Window | None:
        members = self.members(node, path, ("from", "to"), ("every", "reason"))
        if not {"from", "to"} <= members.keys():
            return None
        reason = self.text(members["reason"], f"{path}.reason") if "reason" in members else ""
        if "every" not in members:
            first, last = self._moment(members["from"], f"{path}.from"), self._moment(members["to"], f"{path}.to")
            if first and last and first >= last:
                self.fault(members["to"], f"{path}.to", "is not after `from`; swap them")
            return Dates(first, last, reason) if first and last else None
        start = self._clock(members["from"], f"{path}.from")
        end = self._clock(members["to"], f"{path}.to", is_end=True)
        days = self._days(members["every"], f"{path}.every")
        return Weekly(days, start, end, reason) if days and start is not None and end is not None else None

    def _days(self, node: YamlNode, path: str) -> frozenset[int]:
        names = self.sequence(node, path, self.text) if node.tag == "seq" else [self.text(node, path)]
        if names == ["day"]:
            return frozenset(range(7))
        for name in names:
            if name and name.lower() not in DAYS:
                self.fault(node, path, f"{name!r:.40} is no weekday; write day, or {', '.join(DAYS)}")
        if not names:
            self.fault(node, path, "names no day; write day, or weekdays such as [saturday, sunday]")
        return frozenset(DAYS.index(name.lower()) for name in names if name.lower() in DAYS)

    def _clock(self, node: YamlNode, path: str, *, is_end: bool = False) -> time | None:
        if is_end and node.value == "24:00":
            return time()
        match = CLOCK.fullmatch(node.value) if isinstance(node.value, str) else None
        if match is None:
            self.fault(node, path, "is no time of day; write one such as 06:00" + (" or 24:00" if is_end else ""))
            return None
        return time(int(match[1]), int(match[2]))

    def _moment(self, node: YamlNode, path: str) -> datetime | None:
        if isinstance(node.value, str) and MOMENT.fullmatch(node.value):
            try:
                return datetime.fromisoformat(node.value)
            except ValueError:
                pass
        self.fault(node, path, "is no date with a time; write one such as 2026-12-24T18:00, in the time of `zone`")
        return None

    # --- values ---

    def _name(self, node: YamlNode | None, path: str) -> str:
        text = self.text(node, path)
        if text and not NAME.fullmatch(text):
            self.fault(node, path, "is no name of up to 64 letters, digits, blanks and . _ : -")
        return text

    def _choice(self, node: YamlNode | None, path: str, choices: type[E], default: E) -> E:
        if node is None:
            return default
        text = self.text(node, path)
        if text and text not in list(choices):
            like = nearest(text, list(choices))
            self.fault(
                node, path, f"{text!r:.40} is not one of {', '.join(choices)}" + (f"; write {like}" if like else "")
            )
        return choices(text) if text in list(choices) else default

    def _whole(self, node: YamlNode | None, path: str, least: int, most: int) -> int | None:
        if node is None:
            return None
        if node.tag != "int" or not re.fullmatch(r"-?[0-9]{1,9}", node.value) or not least <= int(node.value) <= most:
            self.fault(node, path, f"is no whole number from {least} to {most}; write one in digits")
            return None
        return int(node.value)

    def _size(self, node: YamlNode, path: str) -> int | None:
        size = read_size(node.value) if node.tag == "str" else None
        if size is None:
            self.fault(node, path, "is no size; write a number with a unit, such as 500 GB, 1.5 TB or 20 TiB")
        return size

    def _rate(self, node: YamlNode, path: str) -> int | None:
        rate = read_rate(node.value) if node.tag == "str" else None
        if rate is None:
            self.fault(node, path, "is no bandwidth; write bytes a second with a unit, such as 100 MB/s")
        return rate


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (LookupError, OSError, ValueError):  # a name that is none, or a path
        return False
    return True


def _plain(node: YamlNode) -> Any:
    """Return a value of YAML as one of JSON. ValueError for a number that JSON has not."""
    match node.tag:
        case "map":
            return {str(key.value): _plain(value) for key, value in node.value}
        case "seq":
            return [_plain(each) for each in node.value]
        case "int":
            return int(node.value)
        case "float":
            return float(node.value)
        case "bool":
            return {"true": True, "false": False}.get(node.value, node.value)
        case "null":
            return None
        case _:
            return node.value
