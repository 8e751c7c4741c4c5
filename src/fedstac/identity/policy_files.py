"""Policy files: read and checked as a whole, kept up to date while a node runs.

The form (docs/operations.md, Policy): YAML with the members `version: 1`, `builtin`, `homes`, `promote_previous` and
`grants`. A file that is not wholly understood is not used. Plain YAML only: aliases, anchors, tags and several
documents are refused, so that a small file is a small policy.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson
import structlog

from fedstac.domain import groups
from fedstac.domain.groups import ANY, PolicyBroken, Right, Shares
from fedstac.domain.policy import BUILTIN, INSTITUTION_ROLE, NODE_ROLE, Action, By, Home, Policy, PolicyRule, Who

T = TypeVar("T")
MAX_BYTES, DEEPEST, LONGEST = 256 << 10, 8, 512
MAX_GLOBUS_BYTES = 16 << 20
MOST_SHOWN = 20  # faults of a file
LOOK_SECONDS = 1.0  # between looks at the files
VERSION = "1"
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Node:
    """A value of the file and the line where it stands: text, a list of nodes, or a list of pairs of nodes."""

    line: int
    tag: str  # str, bool, int, null, seq, map, …
    value: Any


def read(raw: bytes, *, here: str | None = None, shares: Shares | None = None) -> Policy:
    """Return the policy of a file. PolicyBroken names every line that is wrong, up to twenty of them."""
    faults: list[str] = []
    reader = _Reader(faults)
    policy = reader.policy(_parse(raw), here, shares or {})
    if faults:
        more = [f"and {len(faults) - MOST_SHOWN} more"] if len(faults) > MOST_SHOWN else []
        raise PolicyBroken(*faults[:MOST_SHOWN], *more)
    return policy


def _parse(raw: bytes) -> _Node:
    """Parse YAML into nodes with their lines. Nothing is built that the text does not spell out."""
    try:
        import yaml
    except ImportError:
        raise PolicyBroken("reading policies needs PyYAML: pip install 'fedstac[server]'") from None
    if len(raw) > MAX_BYTES:
        raise PolicyBroken(f"the file has over {MAX_BYTES} bytes, the most there may be")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = documents = 0
    try:
        text = raw.decode()
        for event in yaml.parse(text, Loader=loader):
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise PolicyBroken(f"line {line}: anchors and aliases are not taken; write it out")
            if getattr(event, "tag", None) is not None:
                raise PolicyBroken(f"line {line}: tags are not taken")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            documents += isinstance(event, yaml.DocumentStartEvent)
            if depth > DEEPEST or documents > 1:
                raise PolicyBroken(f"line {line}: " + ("nested too deeply" if depth > DEEPEST else "a second document"))
        composed = yaml.compose(text, Loader=loader)
    except UnicodeDecodeError:
        raise PolicyBroken("the file is not UTF-8") from None
    except yaml.YAMLError as error:
        raise PolicyBroken("it is no YAML: " + " ".join(str(error).split())) from None
    if composed is None:
        raise PolicyBroken("the file is empty")
    return _node(composed)


def _node(composed: Any) -> _Node:
    line, tag = composed.start_mark.line + 1, composed.tag.rpartition(":")[2]
    if tag == "seq":
        return _Node(line, tag, [_node(each) for each in composed.value])
    if tag == "map":
        return _Node(line, tag, [(_node(key), _node(value)) for key, value in composed.value])
    return _Node(line, tag, composed.value)


class _Reader:
    """Reads values of the form; what is wrong is noted with its line and path, and reading goes on."""

    def __init__(self, faults: list[str]) -> None:
        self._faults = faults

    def policy(self, node: _Node, here: str | None, shares: Shares) -> Policy:
        members = self._members(node, "", ("version",), ("builtin", "homes", "promote_previous", "grants"))
        if (version := members.get("version")) and (version.tag, version.value) != ("int", VERSION):
            self._fault(version, "version", f"is not {VERSION}, the only one there is")
        builtin = self._flag(members["builtin"], "builtin") if "builtin" in members else False
        grants = self._list(members.get("grants"), "grants", self._grant)
        homes = self._list(members.get("homes"), "homes", self._home)
        names = [grant.name for grant in grants]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._faults.append(f"grants: two have the name {name!r}")
        promoting = self._names(members.get("promote_previous"), "promote_previous")
        return Policy((*(BUILTIN if builtin else ()), *grants), tuple(homes), shares, here, promoting)

    def _grant(self, node: _Node, path: str) -> PolicyRule:
        members = self._members(node, path, ("name", "who", "may", "projects", "institutions", "nodes"), ())
        name = self._text(members.get("name"), f"{path}.name")
        if name.startswith("builtin:"):
            self._fault(node, f"{path}.name", "begins with builtin:, which is for what is built in")
        who = self._list(members.get("who"), f"{path}.who", self._who)
        if "who" in members and not who:
            self._fault(members["who"], f"{path}.who", "names nobody")
        scopes = [self._names(members.get(each), f"{path}.{each}") for each in ("projects", "institutions", "nodes")]
        return PolicyRule(name, tuple(who), self._actions(members.get("may"), f"{path}.may"), *scopes)

    def _actions(self, node: _Node | None, path: str) -> frozenset[Action]:
        names = self._names(node, path)
        if names == {ANY}:
            return frozenset(Action)
        actions = {action.value: action for action in Action}
        for name in sorted(names - actions.keys()):
            self._fault(node, path, f"{name!r} is no action; there are {', '.join(actions)}")
        return frozenset(actions[name] for name in names if name in actions)

    def _who(self, node: _Node, path: str) -> Who:
        """Return the one way by which somebody is recognised. A group may have its issuer beside."""
        members = self._members(node, path, (), (*By, "issuer"))
        ways = [by for by in By if by in members]
        if len(ways) != 1 or ("issuer" in members and ways != [By.GROUP]):
            self._fault(node, path, f"needs exactly one of {', '.join(By)}; issuer goes with group")
            return Who(By.NAME, "")
        [by] = ways
        value = self._text(members[by], f"{path}.{by}")
        issuer = self._text(members["issuer"], f"{path}.issuer") if "issuer" in members else None
        if by is By.ENTITLEMENT and value not in Right.__members__:
            self._fault(node, f"{path}.{by}", f"{value!r} is no right; there are {', '.join(Right)}")
        if by is By.GLOBUS and value != ANY:
            self._fault(node, f"{path}.{by}", "is '*': each share counts for its own project and institution")
        if by is By.ROLE and "{" in value and value not in (INSTITUTION_ROLE, NODE_ROLE):
            self._fault(node, f"{path}.{by}", f"takes {INSTITUTION_ROLE} and {NODE_ROLE}, and no other braces")
        return Who(by, value, issuer)

    def _home(self, node: _Node, path: str) -> Home:
        members = self._members(node, path, ("projects", "institutions", "node", "url"), ())
        projects, institutions = (self._names(members.get(each), f"{path}.{each}") for each in
                                  ("projects", "institutions"))  # fmt: skip
        url = self._text(members.get("url"), f"{path}.url")
        if url and not url.startswith(("https://", "http://")):
            self._fault(members["url"], f"{path}.url", "is no address that begins with https:// or http://")
        return Home(projects, institutions, self._text(members.get("node"), f"{path}.node"), url.rstrip("/"))

    # --- shapes ---

    def _members(self, node: _Node, path: str, required: Iterable[str], optional: Iterable[str]) -> dict[str, _Node]:
        if node.tag != "map":
            self._fault(node, path, "is no mapping")
            return {}
        members: dict[str, _Node] = {}
        for key, value in node.value:
            if key.tag != "str" or key.value not in (*required, *optional):
                self._fault(key, path, f"{key.value!s:.80} is no member; there are {', '.join((*required, *optional))}")
            elif key.value in members:
                self._fault(key, path, f"{key.value} stands there twice")
            else:
                members[key.value] = value
        for name in required:
            if name not in members:
                self._fault(node, path, f"{name} is missing")
        return members

    def _list(self, node: _Node | None, path: str, read: Callable[[_Node, str], T]) -> list[T]:
        if node is None:
            return []
        if node.tag != "seq":
            self._fault(node, path, "is no list")
            return []
        return [read(each, f"{path}[{n}]") for n, each in enumerate(node.value)]

    def _names(self, node: _Node | None, path: str) -> frozenset[str]:
        """Return the texts of a list, or `"*"` for all. A list may not have a star beside names, nor be empty."""
        if node is None:
            return frozenset()
        if node.tag == "str" and node.value == ANY:
            return frozenset((ANY,))
        names = self._list(node, path, self._text)
        if node.tag == "seq" and not names:
            self._fault(node, path, 'names nothing; all are "*"')
        if ANY in names and len(names) > 1:
            self._fault(node, path, 'has "*" beside names')
        return frozenset(names)

    def _text(self, node: _Node | None, path: str) -> str:
        if node is None:
            return ""
        if node.tag != "str" or not 0 < len(node.value) <= LONGEST or not node.value.isprintable():
            hint = "" if node.tag in ("seq", "map") else f" ({node.value!s:.40}: put it in quotes)"
            self._fault(node, path, f"is no text of 1 to {LONGEST} characters{hint}")
            return ""
        return str(node.value)

    def _flag(self, node: _Node, path: str) -> bool:
        if node.tag != "bool" or node.value not in ("true", "false"):
            self._fault(node, path, "is neither true nor false")
        return bool(node.value == "true")

    def _fault(self, node: _Node | None, path: str, problem: str) -> None:
        line = node.line if node else 1
        self._faults.append(f"line {line}: {path or 'the file'} {problem}")


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
