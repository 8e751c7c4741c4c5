"""The rules by which a vocabulary judges a document: each a pure function that yields findings, all faults at once.

`RULES` names every rule, with what it asks. A project's snapshot may make a rule a warning or switch it off
(docs/reference/rules.md). A relation's or composition's rule gets its name from the snapshot.

Adding a rule: its line in RULES, and a check in one of the modules here, listed in CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedstac.domain.errors import Finding, Severity
from fedstac.domain.rules import assets, identity, links, properties, relations
from fedstac.domain.vocabulary import Vocabulary

Check = Callable[[Mapping[str, Any], Vocabulary], Iterator[Finding]]

CHECKS: Final[tuple[Check, ...]] = (
    links.check_extensions, properties.check, identity.check, relations.check, relations.check_compositions,
    assets.check, links.check,
)  # fmt: skip


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
    "access": Rule("`fedstac:access` is open, controlled or private", fixed=True),
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
