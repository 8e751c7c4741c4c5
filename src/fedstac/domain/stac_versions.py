"""STAC versions: documents of 1.0.0 become documents of 1.1.0 on their way in; others are refused by name.

What changed between the two is what pystac's migration does (docs/adr/0016).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fedstac.domain.errors import Finding, Severity

CURRENT: Final = "1.1.0"
UPGRADED: Final = "1.0.0"
OLD_LICENSES: Final = frozenset(("proprietary", "various"))  # `other` since 1.1.0
ITEM_ASSETS: Final = "https://stac-extensions.github.io/item-assets/v1.0.0/schema.json"  # of the core since 1.1.0
RULE: Final = "stac-version"


def upgraded(document: Any) -> tuple[Any, tuple[Finding, ...]]:
    """Return an Item or a Collection of STAC 1.0.0 as one of 1.1.0, with warnings that say what is another.

    Everything else comes back as it is. The document that is given is not changed.
    """
    if not isinstance(document, dict) or document.get("stac_version") != UPGRADED:
        return document, ()
    new = {**document, "stac_version": CURRENT}
    findings = [Finding(RULE, "/stac_version", f"STAC {UPGRADED} is stored as {CURRENT}", Severity.WARNING)]
    properties = new.get("properties")
    if isinstance(properties, dict) and _is_old_license(properties):
        new["properties"] = {**properties, "license": "other"}
        findings.append(_license(properties, "/properties/license"))
    if new.get("type") == "Collection":
        if _is_old_license(new):
            findings.append(_license(new, "/license"))
            new["license"] = "other"
        extensions = new.get("stac_extensions")
        if isinstance(extensions, list) and ITEM_ASSETS in extensions:
            new["stac_extensions"] = [uri for uri in extensions if uri != ITEM_ASSETS]
    return new, tuple(findings)


def _is_old_license(members: Mapping[str, Any]) -> bool:
    license = members.get("license")
    return isinstance(license, str) and license in OLD_LICENSES


def _license(members: Mapping[str, Any], pointer: str) -> Finding:
    message = f"the license {members['license']!r} is `other` since STAC {CURRENT}"
    return Finding(RULE, pointer, message, Severity.WARNING, "other")


def check(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Refuse a document of another version than the current one, and say what to do about it."""
    version = document.get("stac_version")
    if isinstance(version, str) and version != CURRENT:
        message = (
            f"STAC {version[:40]!r} is not taken here, only {CURRENT} and {UPGRADED}; "
            "bring the document to it, with pystac: pystac.read_dict(document).to_dict()"
        )
        yield Finding(RULE, "/stac_version", message, suggestion=CURRENT)
