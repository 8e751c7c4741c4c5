"""Plain YAML with the line of each value: no aliases, anchors or tags, so that a small file is a small policy.

The files that a person writes for a node (policies) are read with it, and every fault is named by line, key and remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from fedstac.domain.groups import ANY, PolicyBroken

T = TypeVar("T")
DEEPEST: Final = 8
LONGEST: Final = 512  # characters of a text
MOST_SHOWN: Final = 20  # faults of a file


@dataclass(frozen=True, slots=True)
class YamlNode:
    """A value of the file and the line where it stands: text, a list of nodes, or a list of pairs of nodes."""

    line: int
    tag: str  # str, bool, int, null, seq, map, …
    value: Any


def parse(raw: bytes, most: int, deepest: int = DEEPEST) -> YamlNode:
    """Parse YAML into nodes with their lines. Nothing is built that the text does not spell out."""
    try:
        import yaml
    except ImportError:
        raise PolicyBroken("reading policies needs PyYAML: pip install 'fedstac[server]'") from None
    if len(raw) > most:
        raise PolicyBroken(f"the file has over {most} bytes, the most there may be")
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
            if depth > deepest or documents > 1:
                raise PolicyBroken(f"line {line}: " + ("nested too deeply" if depth > deepest else "a second document"))
        composed = yaml.compose(text, Loader=loader)
    except UnicodeDecodeError:
        raise PolicyBroken("the file is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: it is no YAML here" if mark is not None else "it is no YAML"
        raise PolicyBroken(f"{place}; see to brackets, quotes and indents") from None
    if composed is None:
        raise PolicyBroken("the file is empty")
    return _node(composed)


def _node(composed: Any) -> YamlNode:
    line, tag = composed.start_mark.line + 1, composed.tag.rpartition(":")[2]
    if tag == "seq":
        return YamlNode(line, tag, [_node(each) for each in composed.value])
    if tag == "map":
        return YamlNode(line, tag, [(_node(key), _node(value)) for key, value in composed.value])
    return YamlNode(line, tag, composed.value)


YamlMembers: TypeAlias = dict[str, YamlNode]  # of a mapping, by name


class YamlReader:
    """Reads values of a form; what is wrong is noted with its line and path, and reading goes on."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def refuse_faults(self) -> None:
        """Raise PolicyBroken with the faults so far, twenty of them at most; nothing happens where there is none."""
        if self.faults:
            more = [f"and {len(self.faults) - MOST_SHOWN} more"] if len(self.faults) > MOST_SHOWN else []
            raise PolicyBroken(*self.faults[:MOST_SHOWN], *more)

    def members(self, node: YamlNode, path: str, required: Iterable[str], optional: Iterable[str]) -> YamlMembers:
        if node.tag != "map":
            self.fault(node, path, "is no mapping; write `key: value` lines")
            return {}
        members: dict[str, YamlNode] = {}
        for key, value in node.value:
            if key.tag != "str" or key.value not in (*required, *optional):
                self.fault(key, path, f"{key.value!s:.80} is no member; there are {', '.join((*required, *optional))}")
            elif key.value in members:
                self.fault(key, path, f"{key.value} stands there twice")
            else:
                members[key.value] = value
        for name in required:
            if name not in members:
                self.fault(node, path, f"{name} is missing")
        return members

    def sequence(self, node: YamlNode | None, path: str, read: Callable[[YamlNode, str], T]) -> list[T]:
        if node is None:
            return []
        if node.tag != "seq":
            self.fault(node, path, "is no list; write [one, another]")
            return []
        return [read(each, f"{path}[{n}]") for n, each in enumerate(node.value)]

    def names(self, node: YamlNode | None, path: str) -> frozenset[str]:
        """Return the texts of a list, or `"*"` for all. A list may not have a star beside names, nor be empty."""
        if node is None:
            return frozenset()
        if node.tag == "str" and node.value == ANY:
            return frozenset((ANY,))
        names = self.sequence(node, path, self.text)
        if node.tag == "seq" and not names:
            self.fault(node, path, 'names nothing; all are "*"')
        if ANY in names and len(names) > 1:
            self.fault(node, path, 'has "*" beside names')
        return frozenset(names)

    def text(self, node: YamlNode | None, path: str) -> str:
        if node is None:
            return ""
        if node.tag != "str" or not 0 < len(node.value) <= LONGEST or not node.value.isprintable():
            hint = "" if node.tag in ("seq", "map") else f" ({node.value!s:.40}: put it in quotes)"
            self.fault(node, path, f"is no text of 1 to {LONGEST} characters{hint}")
            return ""
        return str(node.value)

    def flag(self, node: YamlNode, path: str) -> bool:
        if node.tag != "bool" or node.value not in ("true", "false"):
            self.fault(node, path, "is neither true nor false; write true or false")
        return bool(node.value == "true")

    def fault(self, node: YamlNode | None, path: str, problem: str) -> None:
        line = node.line if node else 1
        self.faults.append(f"line {line}: {path or 'the file'} {problem}")
