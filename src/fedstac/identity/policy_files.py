"""Policy files: read and checked as a whole, kept up to date while a node runs.

The form (docs/operations.md, Policy): YAML with the members `version: 1`, `builtin`, `homes`, `promote_previous`,
`access` and `grants`. A file that is not wholly understood is not used. Plain YAML only: aliases, anchors, tags and
several documents are refused, so that a small file is a small policy.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import orjson
import structlog

from fedstac.domain import groups, plain_yaml
from fedstac.domain.groups import ANY, PolicyBroken, Right, Shares
from fedstac.domain.plain_yaml import YamlNode, YamlReader
from fedstac.domain.policy import (
    BUILTIN,
    INSTITUTION_ROLE,
    NODE_ROLE,
    Action,
    By,
    Home,
    Level,
    Policy,
    PolicyRule,
    ProjectLevel,
    Who,
)

MAX_BYTES = 256 << 10
MAX_GLOBUS_BYTES = 16 << 20
LOOK_SECONDS = 1.0  # between looks at the files
VERSION = "1"
log = structlog.get_logger()


def read(raw: bytes, *, here: str | None = None, shares: Shares | None = None) -> Policy:
    """Return the policy of a file. PolicyBroken names every line that is wrong, up to twenty of them."""
    reader = _Reader()
    policy = reader.policy(plain_yaml.parse(raw, MAX_BYTES), here, shares or {})
    reader.refuse_faults()
    return policy


class _Reader(YamlReader):
    """Reads values of the form; what is wrong is noted with its line and path, and reading goes on."""

    def policy(self, node: YamlNode, here: str | None, shares: Shares) -> Policy:
        members = self.members(node, "", ("version",), ("builtin", "homes", "promote_previous", "access", "grants"))
        if (version := members.get("version")) and (version.tag, version.value) != ("int", VERSION):
            self.fault(version, "version", f"is not {VERSION}, the only one there is")
        builtin = self.flag(members["builtin"], "builtin") if "builtin" in members else False
        grants = self.sequence(members.get("grants"), "grants", self._grant)
        homes = self.sequence(members.get("homes"), "homes", self._home)
        names = [grant.name for grant in grants]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.faults.append(f"grants: two have the name {name!r}")
        promoting = self.names(members.get("promote_previous"), "promote_previous")
        levels = self.sequence(members.get("access"), "access", self._level)
        rules = (*(BUILTIN if builtin else ()), *grants)
        return Policy(rules, tuple(homes), shares, here, promoting, tuple(levels))

    def _level(self, node: YamlNode, path: str) -> ProjectLevel:
        members = self.members(node, path, ("projects", "level"), ())
        level = self.text(members.get("level"), f"{path}.level")
        if level and level not in list(Level):
            self.fault(members["level"], f"{path}.level", f"{level!r} is no level; there are {', '.join(Level)}")
            level = ""
        return ProjectLevel(self.names(members.get("projects"), f"{path}.projects"), Level(level or Level.PRIVATE))

    def _grant(self, node: YamlNode, path: str) -> PolicyRule:
        members = self.members(node, path, ("name", "who", "may", "projects", "institutions", "nodes"), ())
        name = self.text(members.get("name"), f"{path}.name")
        if name.startswith("builtin:"):
            self.fault(node, f"{path}.name", "begins with builtin:, which is for what is built in")
        who = self.sequence(members.get("who"), f"{path}.who", self._who)
        if "who" in members and not who:
            self.fault(members["who"], f"{path}.who", "names nobody")
        scopes = [self.names(members.get(each), f"{path}.{each}") for each in ("projects", "institutions", "nodes")]
        return PolicyRule(name, tuple(who), self._actions(members.get("may"), f"{path}.may"), *scopes)

    def _actions(self, node: YamlNode | None, path: str) -> frozenset[Action]:
        names = self.names(node, path)
        if names == {ANY}:
            return frozenset(Action)
        actions = {action.value: action for action in Action}
        for name in sorted(names - actions.keys()):
            self.fault(node, path, f"{name!r} is no action; there are {', '.join(actions)}")
        return frozenset(actions[name] for name in names if name in actions)

    def _who(self, node: YamlNode, path: str) -> Who:
        """Return the one way by which somebody is recognised. A group may have its issuer beside."""
        members = self.members(node, path, (), (*By, "issuer"))
        ways = [by for by in By if by in members]
        if len(ways) != 1 or ("issuer" in members and ways != [By.GROUP]):
            self.fault(node, path, f"needs exactly one of {', '.join(By)}; issuer goes with group")
            return Who(By.NAME, "")
        [by] = ways
        value = self.text(members[by], f"{path}.{by}")
        issuer = self.text(members["issuer"], f"{path}.issuer") if "issuer" in members else None
        if by is By.ENTITLEMENT and value not in Right.__members__:
            self.fault(node, f"{path}.{by}", f"{value!r} is no right; there are {', '.join(Right)}")
        if by is By.GLOBUS and value != ANY:
            self.fault(node, f"{path}.{by}", "is '*': each share counts for its own project and institution")
        if by is By.ROLE and "{" in value and value not in (INSTITUTION_ROLE, NODE_ROLE):
            self.fault(node, f"{path}.{by}", f"takes {INSTITUTION_ROLE} and {NODE_ROLE}, and no other braces")
        return Who(by, value, issuer)

    def _home(self, node: YamlNode, path: str) -> Home:
        members = self.members(node, path, ("projects", "institutions", "node", "url"), ())
        projects, institutions = (self.names(members.get(each), f"{path}.{each}") for each in
                                  ("projects", "institutions"))  # fmt: skip
        url = self.text(members.get("url"), f"{path}.url")
        if url and not url.startswith(("https://", "http://")):
            self.fault(members["url"], f"{path}.url", "is no address that begins with https:// or http://")
        return Home(projects, institutions, self.text(members.get("node"), f"{path}.node"), url.rstrip("/"))


# --- a node's policy, as of now ---

Stamp = tuple[tuple[int, int, int] | None, ...]


class Policies:
    """The policy of a node's files, read again when they change; the last good one stays while they are broken.

    Looks at most once a second, when somebody asks. PolicyBroken at the start, when there is no good one yet.
    """

    def __init__(self, path: str, globus: str = "", *, here: str) -> None:
        self._path, self._globus, self._here = path, globus, here
        self._looking = threading.Lock()
        self._stamp = self._now()
        self._policy = self._load()
        self._next = time.monotonic() + LOOK_SECONDS
        self.error: str | None = None  # of a file that is there and not used

    @property
    def path(self) -> str:
        return self._path

    @property
    def current(self) -> Policy:
        if time.monotonic() >= self._next and self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._next = time.monotonic() + LOOK_SECONDS
                self._looking.release()
        return self._policy

    def _look(self) -> None:
        stamp = self._now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._policy, self.error = self._load(), None
            log.info("policy read", path=self._path or self._globus, grants=len(self._policy.rules))
        except PolicyBroken as error:
            self.error = str(error)
            log.error("the policy cannot be used; the last good one stays", reason=self.error)

    def _now(self) -> Stamp:
        return tuple(_stamp(path) for path in (self._path, self._globus) if path)

    def _load(self) -> Policy:
        shares: Shares = {}
        if self._globus:
            try:
                shares = groups.shares(orjson.loads(_content(self._globus, MAX_GLOBUS_BYTES)))
            except (PolicyBroken, orjson.JSONDecodeError) as error:
                raise PolicyBroken(f"FEDSTAC_GLOBUS_POLICY: {self._globus}: {error}") from None
        if not self._path:
            return Policy(shares=shares, here=self._here)
        try:
            return read(_content(self._path, MAX_BYTES), here=self._here, shares=shares)
        except PolicyBroken as error:
            raise PolicyBroken(f"FEDSTAC_POLICY: {self._path}: {error}") from None


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _content(path: str, most: int) -> bytes:
    """Return the content of a file; of one that is too large, one byte more than allowed."""
    try:
        with Path(path).open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise PolicyBroken(error.strerror or type(error).__name__) from None
