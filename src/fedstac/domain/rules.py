"""The rules by which a vocabulary judges a document: each a pure function that yields findings, all faults at once.

`RULES` names every rule there is, with what it asks; a project's snapshot may make one a warning or switch it off
(docs/reference/rules.md). A relation's or composition's rule gets its name from the snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from rapidfuzz import fuzz, process, utils

from fedstac.domain.documents import OUR_EXTENSION, SERVER_PROPERTIES, is_of_the_server
from fedstac.domain.errors import Finding, Severity
from fedstac.domain.identifiers import uuid_of_handle
from fedstac.domain.model import moment
from fedstac.domain.vocabulary import ANY_RELATION, Composition, Holds, Kind, Property, Relation, Vocabulary

Document = Mapping[str, Any]
Check = Callable[[Document, Vocabulary], Iterator[Finding]]

NEAR: Final = 72.0  # of 100: how alike a suggestion is at least
MOST_SHOWN: Final = 8  # alternatives in a message
SHA2_256: Final = re.compile(r"1220[0-9a-f]{64}")
HEXADECIMAL: Final = re.compile(r"([0-9a-f]{2})+")
HANDLE: Final = re.compile(r"hdl:[0-9.]+/[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
UNSAFE: Final = re.compile(r"[\x00-\x20\x7f\\]")  # what browsers drop or turn, so that a scheme hides in it
SCHEMES: Final = frozenset(
    ("http", "https", "s3", "gs", "ftp", "ftps", "gsiftp", "sftp", "globus", "hdl", "doi", "urn")
)
# https://github.com/multiformats/multicodec (facts): code → name and length of the digest in bytes
MULTIHASHES: Final = {
    0x11: ("sha1", 20), 0x12: ("sha2-256", 32), 0x13: ("sha2-512", 64), 0x14: ("sha3-512", 64),
    0x15: ("sha3-384", 48), 0x16: ("sha3-256", 32), 0x17: ("sha3-224", 28), 0x1E: ("blake3", 32),
    0x20: ("sha2-384", 48), 0xD5: ("md5", 16), 0xB220: ("blake2b-256", 32), 0xB240: ("blake2b-512", 64),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it is documented. `fixed`: everything else relies on it; no project can switch it."""

    asks: str
    severity: Severity = Severity.ERROR
    fixed: bool = False


RULES: Final[Mapping[str, Rule]] = {
    "shape": Rule("The document is a STAC Item: its members are there and of their kinds", fixed=True),
    "collection": Rule("`collection` is the one that the item was sent to", fixed=True),
    "id": Rule(
        "The id can be a step of a URL: 1 to 512 characters, no control character, / ? # or %; that of a new dataset "
        "has no comma, no character that is not seen, and no space at its end",
        fixed=True,
    ),
    "id-template": Rule("The id has the form that the project gives to dataset ids", fixed=True),
    "stac-version": Rule("The item is of STAC 1.1.0, or of 1.0.0, which is stored as 1.1.0 with a warning", fixed=True),
    "stac-core": Rule("The item, as it will be served, is valid by the STAC 1.1.0 item schema", fixed=True),
    "file": Rule("Members that begin with `file:` are those of the file extension", fixed=True),
    "alternate-assets": Rule("`alternate` is as the alternate-assets extension has it", fixed=True),
    "geometry": Rule("The geometry is valid GeoJSON within −180..360 and −90..90, the bbox a box in it", fixed=True),
    "longitude": Rule("Longitudes over 180 are searched as their equals within −180..180", Severity.WARNING),
    "datetime": Rule("Dates are RFC 3339, the start is not after the end", fixed=True),
    "server-owned": Rule("What the server sets itself is replaced where it is sent", Severity.WARNING),
    "extension": Rule("The extensions that the project needs are declared, and no others", fixed=True),
    "required": Rule("A property that the project needs is there"),
    "unknown": Rule("No property has the project's prefix and a name that the project does not know"),
    "type": Rule("A property is of its type"),
    "term": Rule("A value is a term of its vocabulary"),
    "pattern": Rule("A value has the form that its pattern gives"),
    "id-agrees-with-properties": Rule("The facets in the id are those of the properties", fixed=True),
    "base-id": Rule("`base_id` and `title` are the id without its version"),
    "version": Rule("`version` is the version of the id, a date of the calendar"),
    "pid": Rule("The persistent identifier is that of the id, as ESGF's handle service has it", Severity.WARNING),
    "file-name": Rule("A file's name follows the template with this dataset's facets"),
    "directory": Rule("`file:local_path` follows the directory template with this dataset's facets", Severity.WARNING),
    "source-institution": Rule("The model is registered for the institution"),
    "source-activity": Rule("The model takes part in the activity"),
    "experiment-activity": Rule("The experiment belongs to the activity"),
    "sub-experiment": Rule("The sub-experiment is one of the experiment's"),
    "model-components": Rule("The model run has the components that the experiment requires, and none it forbids"),
    "domain": Rule("The name of the domain is that of its id"),
    "table-variable": Rule("The variable is in the table, with that table's units, standard name, frequency and realm"),
    "member-id": Rule("The member id is the variant label, behind the sub-experiment where there is one"),
    "checksum": Rule("A checksum is a multihash: a known function, with as many bytes as it gives"),
    "size-sum": Rule("`size` is the sum of the files' sizes"),
    "tracking-id": Rule("Each file has a tracking id of its own"),
    "cite-as": Rule("There is a citation link as the project wants it"),
    "link": Rule("A link of a relation that the project knows has its type, title and form"),
    "href": Rule("An address is relative or of a scheme that is no script", fixed=True),
    "protocol": Rule("An asset's protocol is one that the project knows"),
    "alternate-name": Rule("An asset and each alternate name their node, the alternate by its key"),
    # beside other datasets: crosschecks.py
    "coverage": Rule("A newer version covers the time that the one before it covers", Severity.WARNING),
    "same-files": Rule("No other dataset has the same files", Severity.WARNING),
    "shared-tracking-id": Rule("No other dataset has a file with this tracking id", Severity.WARNING),
}  # fmt: skip


def pointer(*steps: object) -> str:
    """A JSON pointer (RFC 6901) of these steps."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def nearest(value: str, terms: Sequence[str] | Mapping[str, object]) -> str | None:
    """The term that is most like a value, if one is near; the first by name of several."""
    if len(value) > 200:
        return None
    found = process.extract(value, list(terms), scorer=fuzz.ratio, processor=utils.default_process,
                            score_cutoff=NEAR, limit=5)  # fmt: skip
    if not found:
        return None
    return min(found, key=lambda match: (-match[1], -fuzz.ratio(value, match[0]), match[0]))[0]


def _shown(values: Sequence[str]) -> str:
    more = f" and {len(values) - MOST_SHOWN} more" if len(values) > MOST_SHOWN else ""
    return ", ".join(values[:MOST_SHOWN]) + more


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


# --- properties, by themselves ---


def properties(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """required, type, term, pattern; unknown for what has the prefix and is not known."""
    given = document["properties"]
    for name, known in vocabulary.properties.items():
        value = given.get(name)
        if known.is_met_by(value):
            continue
        if value is None and name not in given:
            if known.required:
                yield Finding("required", "/properties", f"{vocabulary.project} needs the property `{name}`")
            continue
        if name not in SERVER_PROPERTIES:
            yield from _value(known, value, pointer("properties", name), vocabulary)
    prefix = vocabulary.prefix + ":"
    for name in given:
        if name.startswith(prefix) and name not in vocabulary.properties:
            suggestion = nearest(name, vocabulary.properties)
            yield Finding("unknown", pointer("properties", name),
                          _asking(f"{vocabulary.project} knows no property `{name[:80]}`", suggestion),
                          suggestion=suggestion)  # fmt: skip


def _asking(sentence: str, suggestion: str | None) -> str:
    return f"{sentence}; did you mean `{suggestion}`?" if suggestion else sentence


KINDS: Final[Mapping[Kind, tuple[tuple[type, ...], str]]] = {
    Kind.STRING: ((str,), "a string"),
    Kind.STRINGS: ((list,), "a list of strings"),
    Kind.INTEGER: ((int,), "a whole number"),
    Kind.NUMBER: ((int, float), "a number"),
    Kind.BOOLEAN: ((bool,), "true or false"),
    Kind.DATETIME: ((str,), "a date and time as in RFC 3339"),
}


def _value(known: Property, value: object, place: str, vocabulary: Vocabulary) -> Iterator[Finding]:
    """One property or member of an asset against what is asked of it."""
    kinds, wanted = KINDS[known.kind]
    if type(value) not in kinds or (known.kind is Kind.DATETIME and moment(value) is None):
        yield Finding("type", place, f"`{known.name}` has to be {wanted}, not {_brief(value)}")
        return
    if known.kind in (Kind.INTEGER, Kind.NUMBER):
        if known.minimum is not None and value < known.minimum:  # type: ignore[operator]
            yield Finding("type", place, f"`{known.name}` has to be {known.minimum:g} or more, not {_brief(value)}")
    elif known.kind is Kind.STRING:
        yield from _text(known, str(value), place, vocabulary)
    elif isinstance(value, list):
        if not value:
            yield Finding("type", place, f"`{known.name}` has to list one value at least")
        for n, entry in enumerate(value):
            if type(entry) is not str:
                yield Finding("type", f"{place}/{n}", f"`{known.name}` lists strings, not {_brief(entry)}")
            elif entry in value[:n]:
                yield Finding("type", f"{place}/{n}", f"`{known.name}` lists {_brief(entry)} twice")
            else:
                yield from _text(known, entry, f"{place}/{n}", vocabulary)


def _text(known: Property, value: str, place: str, vocabulary: Vocabulary) -> Iterator[Finding]:
    if known.takes(value):
        return
    short = known.name.rpartition(":")[2]
    if known.terms is not None:
        suggestion = nearest(value, known.terms)
        rule = "protocol" if known.name == "protocol" else "term"
        yield Finding(rule, place, _asking(f"{vocabulary.project} has no {short} `{value[:80]}`", suggestion),
                      suggestion=suggestion)  # fmt: skip
    elif known.pattern is not None:
        message = f"`{known.name}` is {_brief(value)}, which is not of the form {known.pattern.text}"
        yield Finding("pattern", place, message)


# --- the id and what it says ---


def identity(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """id-agrees-with-properties, version, base-id: permission goes by the properties, the lineage by the id.

    A `base_id` or `title` that the properties make is no fault of its own: that the id differs is told of the property.
    """
    match = vocabulary.id_pattern.fullmatch(document["id"])
    if match is None:  # the rule id-template says it
        return
    given = document["properties"]
    by_properties: str | None = None  # what the properties make of the id, where they differ from it
    for name, value in zip(vocabulary.id_template.names, match.groups(), strict=True):
        stated = given.get(name)
        if stated == value or name == "version":
            continue
        if type(stated) is list and value in stated:
            continue
        known = vocabulary.properties.get(name)
        if stated is None and known is not None and known.required and name not in given:
            continue  # the rule required says it
        message = f"`{name}` is {_brief(stated)}, and {value!r} in the id"
        suggestion = value if known is None or known.takes(value) else None  # the typo may be the id's
        yield Finding("id-agrees-with-properties", pointer("properties", name), message, suggestion=suggestion)
        by_properties = _base_by_properties(document, vocabulary)
    yield from _version(document, match.group(match.re.groups))
    if by_properties is None:  # else the handle may be the right one, and the id wrong
        yield from _pid(document, vocabulary)
    base = document["id"][: -vocabulary.base_suffix]
    for name, holder, place in (
        ("base_id", given, "/properties/base_id"),
        ("title", given, "/properties/title"),
        ("base_id", document, "/base_id"),  # where the published schema of CMIP6 looks for it
    ):
        stated = holder.get(name, base)
        if stated != base and (by_properties is None or stated != by_properties):
            message = f"`{name}` is {_brief(stated)}; it is the id without its version, {base!r}"
            yield Finding("base-id", place, message, suggestion=base)


def _pid(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    name = f"{vocabulary.prefix}:pid"
    stated = document["properties"].get(name)
    if not isinstance(stated, str) or not HANDLE.fullmatch(stated):  # the rule pattern says it
        return
    prefix, _, uuid = stated.rpartition("/")
    expected = str(uuid_of_handle(document["id"]))
    if uuid.lower() != expected:
        message = f"`{name}` is {_brief(stated)}; the handle service derives another one from the id"
        yield Finding("pid", pointer("properties", name), message, Severity.WARNING, suggestion=f"{prefix}/{expected}")


def _base_by_properties(document: Document, vocabulary: Vocabulary) -> str:
    """The id without its version as the properties make it; "" where one that it needs is no text."""
    given = {**document["properties"], "version": document["id"][-8:]}
    return (vocabulary.id_template.fill(given) or "")[: -vocabulary.base_suffix]


def _given_by_id(document: Document, vocabulary: Vocabulary) -> dict[str, Any]:
    """The properties, with those that the id holds as they are in the id."""
    match = vocabulary.id_pattern.fullmatch(document["id"])
    by_id = zip(vocabulary.id_template.names, match.groups(), strict=True) if match else ()
    return {**document["properties"], **dict(by_id)}


def _version(document: Document, version: str) -> Iterator[Finding]:
    for holder, place in ((document["properties"], "/properties/version"), (document, "/version")):
        stated = holder.get("version", version)
        if stated != version:
            message = f"`version` is {_brief(stated)}, and {version!r} in the id"
            yield Finding("version", place, message, suggestion=version)
    try:
        date(int(version[:4]), int(version[4:6]), int(version[6:]))
    except ValueError:
        yield Finding("version", "/id", f"the version {version!r} is no date of the calendar (YYYYMMDD)")


# --- what ties properties together ---


def relations(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Each relation of the snapshot, where the properties that it speaks of are valid by themselves."""
    given = document["properties"]
    for relation in vocabulary.relations:
        names = [given.get(name) for name in relation.of]
        try:
            term = relation.terms.get(".".join(names) if len(names) > 1 else names[0])
        except TypeError:  # one of them is no text, which is said elsewhere
            continue
        if term is None:
            if _are_valid(relation.of, given, vocabulary):
                yield from _no_such_term(relation, names, vocabulary)
        elif relation.property is not None and relation.attribute is not None:
            wanted, stated = term.get(relation.attribute), given.get(relation.property)
            if wanted is not None and stated is not None and not _holds(relation.holds, wanted, stated):
                yield from _disagreement(relation, wanted, stated, given, vocabulary)


def _are_valid(names: Sequence[str], given: Mapping[str, Any], vocabulary: Vocabulary) -> bool:
    """Whether each value is one that its own property takes."""
    for name in names:
        known, value = vocabulary.properties.get(name), given.get(name)
        if known is None or value is None:
            continue
        if any(_value(known, value, "", vocabulary)):
            return False
    return True


def _no_such_term(relation: Relation, names: Sequence[str], vocabulary: Vocabulary) -> Iterator[Finding]:
    """The combination is the fault; of a single property its own `terms` have said it."""
    if len(names) == 1 and relation.holds is not Holds.EXISTS:
        return
    last, front = relation.of[-1].rpartition(":")[2], ".".join(names[:-1]) + "."
    within = [term[len(front) :] for term in relation.terms if term.startswith(front)] if len(names) > 1 else []
    suggestion = nearest(names[-1], within or relation.terms)
    pairs = " and ".join(f"{name.rpartition(':')[2]} `{value}`" for name, value in zip(relation.of, names, strict=True))
    message = _asking(f"{vocabulary.project} has no {pairs} together" if len(names) > 1
                      else f"{vocabulary.project} has no {last} `{names[0]}`", suggestion)  # fmt: skip
    yield Finding(relation.rule, pointer("properties", relation.of[-1]), message, suggestion=suggestion)


def _holds(holds: Holds, wanted: Any, stated: Any) -> bool:
    if type(wanted) is not list:
        if type(stated) is not list:
            return bool(stated == wanted)
        wanted = [wanted]
    elif type(stated) is str and holds is Holds.ALLOWS:
        return stated in wanted
    values = stated if type(stated) is list else (stated,)
    match holds:
        case Holds.ALLOWS:
            return all(value in wanted for value in values)
        case Holds.REQUIRES:
            return all(any(one in values for one in entry.split("|")) for entry in wanted)
        case _:
            return len(wanted) == len(values) and all(value in wanted for value in values)


def _disagreement(
    relation: Relation, wanted: Any, stated: Any, given: Mapping[str, Any], vocabulary: Vocabulary
) -> Iterator[Finding]:
    assert relation.property is not None
    if not _are_valid((*relation.of, relation.property), given, vocabulary):
        return
    options = [str(entry) for entry in wanted] if type(wanted) is list else [str(wanted)]
    whose = ", ".join(f"{name.rpartition(':')[2]} `{given[name]}`" for name in relation.of)
    short = relation.property.rpartition(":")[2]
    shown = ", ".join(f"`{entry}`" for entry in stated) if type(stated) is list else f"`{stated}`"
    verb = {Holds.ALLOWS: "allows", Holds.REQUIRES: "requires"}.get(relation.holds, "has")
    message = f"{whose} {verb} the {short} {_shown(options)}, not {shown}"
    yield Finding(relation.rule, pointer("properties", relation.property), message[:600],
                  suggestion=options[0] if len(options) == 1 else None)  # fmt: skip


def compositions(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Properties that are put together from others, such as the member id."""
    given = document["properties"]
    for composition in vocabulary.compositions:
        stated = given.get(composition.property)
        expected = composition.expected(given)
        if stated is not None and expected is not None and stated != expected:
            yield _composed(composition, stated, expected)


def _composed(composition: Composition, stated: object, expected: str) -> Finding:
    message = f"`{composition.property}` is {_brief(stated)}; from the other properties it is `{expected[:120]}`"
    return Finding(composition.rule, pointer("properties", composition.property), message, suggestion=expected)


# --- files ---


def assets(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Every asset's members, names and checksum; the tracking ids and sizes of all of them together."""
    given = document["properties"]
    head = vocabulary.file_name.head.fill(given) if vocabulary.file_name else None
    tracking = vocabulary.prefix + ":tracking_id"
    seen: dict[object, str] = {}
    for key, asset in document["assets"].items():
        yield from _members(key, asset, vocabulary)
        yield from _named(key, asset)
        if "file:checksum" in asset and not _is_sha2_256(asset["file:checksum"]):
            yield from _checksum(asset["file:checksum"], pointer("assets", key, "file:checksum"))
        if head is not None:
            # ESGF's publisher gives its link to the folder at Globus a tracking id: the dataset's
            is_file = tracking in asset and asset.get("protocol") != "globus"
            yield from _file_name(key, document, head, vocabulary, is_file=is_file)
        identifier = asset.get(tracking)
        if identifier is not None and seen.setdefault(str(identifier), key) != key:
            message = f"{_brief(identifier)} is the tracking id of {seen[str(identifier)]!r} too"
            yield Finding("tracking-id", pointer("assets", key, tracking), message)
    yield from _size(given, document["assets"])


def _members(key: str, asset: Mapping[str, Any], vocabulary: Vocabulary) -> Iterator[Finding]:
    for name, known in vocabulary.assets.items():
        value = asset.get(name)
        if known.is_met_by(value):
            continue
        if value is None and name not in asset:
            if known.required:
                yield Finding("protocol" if name == "protocol" else "required", pointer("assets", key),
                              f"{vocabulary.project} needs `{name}` in every asset")  # fmt: skip
            continue
        yield from _value(known, value, pointer("assets", key, name), vocabulary)


def _named(key: str, asset: Mapping[str, Any]) -> Iterator[Finding]:
    """alternate-name, and the addresses and checksums of the alternates."""
    if not asset.get("alternate:name"):
        message = "`alternate:name` is missing: the node that holds this file"
        yield Finding("alternate-name", pointer("assets", key), message)
    alternates = asset.get("alternate")
    if type(alternates) is not dict:  # the schema says it
        return
    for node, alternate in alternates.items():
        if type(alternate) is not dict:
            continue
        place = pointer("assets", key, "alternate", node)
        if alternate.get("alternate:name") != node:
            message = f"`alternate:name` is {_brief(alternate.get('alternate:name'))}; an alternate's key is its node"
            yield Finding("alternate-name", place, message, suggestion=node)
        if "file:checksum" in alternate:
            yield from _checksum(alternate["file:checksum"], place + "/file:checksum")


def _checksum(value: object, place: str) -> Iterator[Finding]:
    """A multihash in lower-case hexadecimal (STAC file extension; https://multiformats.io/multihash/)."""
    if type(value) is not str or _is_sha2_256(value):
        return
    if not HEXADECIMAL.fullmatch(value):
        message = f"{_brief(value)} is no multihash: pairs of the digits 0-9 a-f; sha-256 is 1220 and its 64 digits"
        yield Finding("checksum", place, message)
        return
    raw = bytes.fromhex(value)
    code, at = _varint(raw, 0)
    length, at = _varint(raw, at)
    known = MULTIHASHES.get(code)
    if known is None:
        yield Finding(
            "checksum", place, f"{_brief(value)} begins with no hash function that is known here (0x{code:x})"
        )
    elif length != known[1] or len(raw) - at != known[1]:
        name, size = known
        message = f"{_brief(value)} has {len(raw) - at} bytes of {name}, which has {size}"
        yield Finding("checksum", place, message)


def _is_sha2_256(value: object) -> bool:
    return type(value) is str and SHA2_256.fullmatch(value) is not None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number of at most four bytes, and where it ends; −1 where there is none."""
    number = 0
    for n in range(4):
        if at + n >= len(raw):
            return -1, at
        number |= (raw[at + n] & 0x7F) << (7 * n)
        if not raw[at + n] & 0x80:
            return number, at + n + 1
    return -1, at


def _file_name(key: str, document: Document, head: str, vocabulary: Vocabulary, *, is_file: bool) -> Iterator[Finding]:
    """file-name, directory: by the properties or by the id. That these differ is told once, and not of each file."""
    asset, wanted = document["assets"][key], vocabulary.file_name
    assert wanted is not None
    if not is_file and not key.endswith(wanted.tail):
        return
    if not wanted.fits(key, head):
        head = wanted.head.fill(_given_by_id(document, vocabulary)) or head
        if not wanted.fits(key, head):
            example = f"{head}{wanted.joint + '<time range>' if wanted.joint else ''}{wanted.tail}"
            yield Finding("file-name", pointer("assets", key), f"the name {_brief(key)} is not of the form {example}")
    path = asset.get("file:local_path")
    if type(path) is not str:
        return
    parent, _, name = path.rpartition("/")
    if name != key:
        message = f"`file:local_path` names the file {_brief(name)}; the asset is {key!r}"
        yield Finding("file-name", pointer("assets", key, "file:local_path"), message)
    elif vocabulary.directory is not None:
        yield from _directory(parent, pointer("assets", key, "file:local_path"), document, vocabulary)


def _directory(parent: str, place: str, document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    wanted = vocabulary.directory
    assert wanted is not None
    folder = wanted.fill(document["properties"])
    if folder is None or _ends_with(parent, folder):
        return
    folder = wanted.fill(_given_by_id(document, vocabulary)) or folder
    if not _ends_with(parent, folder):
        message = f"the folder is {_brief(parent)}; by the id it is {folder!r}"
        yield Finding("directory", place, message, Severity.WARNING, folder)


def _ends_with(parent: str, folder: str) -> bool:
    return parent == folder or parent.endswith("/" + folder)


def _size(given: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """The same file may be listed for several protocols: it counts once. Without all sizes nothing can be said."""
    sizes: dict[object, int] = {}
    for key, asset in files.items():
        if "file:checksum" not in asset or asset.get("protocol") == "kerchunk":
            continue
        size = asset.get("file:size")
        if type(size) is not int:
            return
        sizes.setdefault(asset["file:checksum"] if type(asset["file:checksum"]) is str else key, size)
    stated, total = given.get("size"), sum(sizes.values())
    if sizes and type(stated) is int and stated != total:
        message = f"`size` is {stated}; the sizes of the {len(sizes)} files sum up to {total}"
        yield Finding("size-sum", "/properties/size", message, suggestion=str(total))


# --- links and extensions ---


def links(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """cite-as and the other relations that the project says something about; `*` is every link."""
    for wanted in vocabulary.links:
        rule, found = "cite-as" if wanted.rel == "cite-as" else "link", False
        for n, link in enumerate(document["links"]):
            if wanted.rel not in (link["rel"], ANY_RELATION) or is_of_the_server(link):
                continue
            found = True
            for member, value in (("type", wanted.type), ("title", wanted.title)):
                stated = link.get(member, value)
                if value is not None and stated != value:
                    message = f"the `{member}` of a {wanted.rel} link is {value!r}, not {_brief(stated)}"
                    yield Finding(rule, pointer("links", n, member), message, suggestion=value)
            if wanted.pattern is not None and not wanted.pattern.fits(link["href"]):
                message = f"{_brief(link['href'])} is not of the form {wanted.pattern.text}"
                yield Finding(rule, pointer("links", n, "href"), message)
        if wanted.required and not found:
            yield Finding(rule, "/links", f"{vocabulary.project} needs a link with the relation `{wanted.rel}`")


def extensions(document: Document, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Only the project's extensions, and all that it needs; a URI is compared, never fetched."""
    uris = document.get("stac_extensions", [])
    if type(uris) is not list:  # the schema says it
        return
    declared = set()
    for n, uri in enumerate(uris):
        known = vocabulary.uris.get(uri) if type(uri) is str else None
        if known is not None:
            declared.add(known.name)
        elif not (type(uri) is str and OUR_EXTENSION in uri):
            suggestion = nearest(str(uri), vocabulary.uris)
            message = _asking(f"{vocabulary.project} does not take the extension {str(uri)[:200]!r}", suggestion)
            yield Finding("extension", pointer("stac_extensions", n), message, suggestion=suggestion)
    for extension in vocabulary.extensions:
        if extension.required and extension.name not in declared:
            message = f"{vocabulary.project} needs the extension {extension.name}: declare {extension.uris[0]}"
            yield Finding("extension", "/stac_extensions", message, suggestion=extension.uris[0])


CHECKS: Final[tuple[Check, ...]] = (extensions, properties, identity, relations, compositions, assets, links)


# --- what holds without a vocabulary too ---


def addresses(document: Document) -> Iterator[Finding]:
    """href: no script hides in an address that a browser will show as a link."""
    for n, link in enumerate(document["links"]):
        if not _is_harmless(link["href"]):
            yield _harmful(link["href"], pointer("links", n, "href"))
    for key, asset in document["assets"].items():
        if not _is_harmless(asset.get("href")):
            yield _harmful(asset["href"], pointer("assets", key, "href"))
        alternates = asset.get("alternate")
        for node, alternate in alternates.items() if type(alternates) is dict else ():
            if type(alternate) is dict and not _is_harmless(alternate.get("href")):
                yield _harmful(alternate["href"], pointer("assets", key, "alternate", node, "href"))


def _is_harmless(href: object) -> bool:
    if type(href) is not str or href.startswith("https://"):
        return True
    scheme = SCHEME.match(UNSAFE.sub("", href))
    return scheme is None or scheme[1].lower() in SCHEMES


def _harmful(href: str, place: str) -> Finding:
    return Finding("href", place, f"{_brief(href)} is no address that is taken here; use http, https or a relative one")
