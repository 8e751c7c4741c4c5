"""The STAC item of a CMIP6 dataset, from the facts of its files (values.py). Pure: the same files give the same item.

Sources: "CMIP6 Global Attributes, DRS, Filenames, Directory Structure, and CV's" 6.2.7 (what ids are made of), the STAC
file extension 2.1.0 (checksums are multihashes) and alternate-assets extension 1.2.0, ESGF's items.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fedstac.domain.crosschecks import Version
from fedstac.domain.errors import Severity
from fedstac.domain.identifiers import uuid_of_handle
from fedstac.domain.vocabulary import Vocabulary
from fedstac.scan import extents
from fedstac.scan.calendars import ALWAYS, moment_text
from fedstac.scan.extents import Box
from fedstac.scan.site import SERVICES, Site
from fedstac.scan.values import Facts, Fault, ScanFile, printable

Files = Sequence[tuple[ScanFile, Facts]]
EXTENSIONS: Final = (
    "https://stac-extensions.github.io/cmip6/v3.0.2/schema.json",
    "https://stac-extensions.github.io/alternate-assets/v1.2.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
LISTS: Final = ("activity_id", "realm", "source_type")  # values with spaces between
TEXTS: Final = (
    "data_specs_version", "experiment", "experiment_id", "frequency", "grid", "grid_label", "institution_id",
    "nominal_resolution", "product", "source_id", "sub_experiment_id", "table_id", "variable_id", "variant_label",
)  # fmt: skip
OF_VARIABLE: Final = {
    "standard_name": "variable_cf_standard_name", "long_name": "variable_long_name", "units": "variable_units",
}  # fmt: skip
STEM: Final = re.compile(r"(?P<stem>.+?)(_[0-9]{4,14}-[0-9]{4,14}(-clim)?)?\.nc")
FURTHER_INFO: Final = re.compile(r"https?://furtherinfo\.es-doc\.org/CMIP6[A-Za-z0-9._/-]*")


def member_id(attributes: Mapping[str, str]) -> str:
    """Return the variant, behind the sub-experiment where there is one."""
    sub_experiment, variant = attributes["sub_experiment_id"], attributes["variant_label"]
    return variant if sub_experiment == "none" else f"{sub_experiment}-{variant}"


def base_id(facts: Facts) -> str:
    """Return the dataset's id without its version. Of several activities the first one counts."""
    attributes = facts["attributes"]
    return ".".join((
        "CMIP6", attributes["activity_id"].split()[0], attributes["institution_id"], attributes["source_id"],
        attributes["experiment_id"], member_id(attributes), attributes["table_id"], attributes["variable_id"],
        attributes["grid_label"],
    ))  # fmt: skip


def stem(name: str) -> str:
    """Return a file's name without its time range: alike for all files of a dataset."""
    match = STEM.fullmatch(name)
    return match["stem"] if match else name


def pid(id: str) -> str:
    """Return the dataset's persistent identifier, as ESGF's own services derive it."""
    return f"hdl:21.14100/{uuid_of_handle(id)}"


def facets(facts: Facts, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """Return the properties `cmip6:…` that one file gives; what it leaves out about its experiment and variable is the
    vocabulary's."""
    attributes = _term_texts(vocabulary, "experiment_id", facts["attributes"]["experiment_id"], {"title": "experiment"})
    attributes |= {name: value for name, value in facts["attributes"].items() if value}
    variable = _term_texts(
        vocabulary, "table_variable", f"{attributes['table_id']}.{attributes['variable_id']}", OF_VARIABLE
    )
    variable |= {ours: facts["variable"][name] for name, ours in OF_VARIABLE.items() if facts["variable"].get(name)}
    values: dict[str, Any] = {name: attributes[name] for name in TEXTS if name in attributes}
    values |= {name: list(dict.fromkeys(attributes[name].split())) for name in LISTS}
    values |= {"member_id": member_id(attributes), **variable}
    return {f"cmip6:{name}": values[name] for name in sorted(values)}


def _term_texts(vocabulary: Vocabulary | None, terms: str, term: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return texts that a term has, under names of ours."""
    attributes = vocabulary.terms.get(terms, {}).get(term, {}) if vocabulary else {}
    return {ours: attributes[name] for name, ours in names.items() if isinstance(attributes.get(name), str)}


# --- whether files belong together ---


def disagreements(id: str, files: Files) -> Iterator[Fault]:
    """Yield errors: facets in which the files differ, each with two of them; two files of one name."""
    first, facts = files[0]
    facets_of_first, odd = facets(facts), set()
    names: dict[str, ScanFile] = {}
    for file, facts in files:
        facets_of_file = facets(facts)
        for name in facets_of_first.keys() | facets_of_file.keys():
            if facets_of_file.get(name) != facets_of_first.get(name) and name not in odd:
                odd.add(name)
                values = f"{printable(facets_of_first.get(name))} and {printable(facets_of_file.get(name))}"
                yield Fault(id, "facets-disagree", f"{first.path} and {file.path} differ in {name}: {values}")
        other = names.setdefault(file.name, file)
        if other is not file:
            yield Fault(id, "same-name", f"{other.path} and {file.path} have the same name")


def overlaps(id: str, files: Files) -> Iterator[Fault]:
    """Yield warnings: two files for one time."""
    spans = sorted((facts["start"], facts["end"], file.path) for file, facts in files if facts["start"])
    reach, furthest = "", ""
    for start, end, path in spans:
        if start <= reach:
            yield Fault(id, "overlap", f"{furthest} goes up to {reach}, and {path} begins at {start}", Severity.WARNING)
        reach, furthest = max((reach, furthest), (end, path))


# --- the item ---


def covered(item: Mapping[str, Any]) -> Version:
    """Return what time an item's version covers."""
    properties = item["properties"]
    start, end = properties["start_datetime"], properties["end_datetime"]
    return Version(item["id"], int(properties["version"]), start, end)


def item(id: str, files: Files, site: Site, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """Return the item of files that agree.

    It depends on them, the site and the vocabulary alone; sizes are in bytes.
    """
    first, facts = files[0]
    base = base_id(facts)
    starts = [facts["start"] or ALWAYS[0] for _, facts in files]
    ends = [facts["end"] or ALWAYS[1] for _, facts in files]
    boxes = [Box(*facts["box"]) for _, facts in files if facts["box"]]
    area = extents.union(boxes) if boxes else None
    created = max(_created(file, facts) for file, facts in files)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": _extensions(vocabulary),
        "id": id,
        "collection": "CMIP6",
        "geometry": extents.geometry(area) if area else None,
        **({"bbox": extents.bbox(area)} if area else {}),
        "properties": {
            "datetime": None,
            "start_datetime": moment_text(min(starts)),
            "end_datetime": moment_text(max(ends)),
            "created": created,
            "updated": created,
            "size": sum(file.size for file, _ in files),
            "retracted": False,
            "latest": True,
            "version": first.version,
            "project": "CMIP6",
            "access": site.access_of(site.roots[first.root]),
            "title": base,
            "base_id": base,
            **facets(facts, vocabulary),
            "cmip6:pid": pid(id),
        },
        "links": list(_links(id, facts)),
        "assets": {file.name: _file(file, facts, site) for file, facts in files} | dict(_folders(files, site, created)),
    }


def _extensions(vocabulary: Vocabulary | None) -> list[str]:
    """Return those that the project needs, in the spelling that it names first."""
    required_uris = (
        [extension.uris[0] for extension in vocabulary.extensions if extension.required] if vocabulary else []
    )
    return required_uris or list(EXTENSIONS)


def _links(id: str, facts: Facts) -> Iterator[dict[str, str]]:
    href = f"https://cera-www.dkrz.de/WDCC/meta/CMIP6/{id}.json"
    yield {"rel": "cite-as", "type": "application/json", "title": "Citation URL", "href": href}
    further = facts["attributes"].get("further_info_url", "")
    if FURTHER_INFO.fullmatch(further):
        yield {"rel": "describedby", "type": "text/html", "title": "ES-DOC", "href": further}


def _created(file: ScanFile, facts: Facts) -> str:
    """Return when the file says that it was written, else when it was last changed."""
    creation_date = facts["attributes"].get("creation_date", "")
    try:
        return datetime.strptime(creation_date, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return datetime.fromtimestamp(file.mtime // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _file(file: ScanFile, facts: Facts, site: Site) -> dict[str, Any]:
    root, created = site.roots[file.root], _created(file, facts)
    return {
        "href": root.address(root.protocol, file.local),
        "description": f"{SERVICES[root.protocol]} Link",
        "type": "application/netcdf",
        "roles": ["data"],
        "alternate:name": site.node,
        "node": site.node,
        "protocol": root.protocol,
        "file:size": file.size,
        "file:checksum": f"1220{facts['sha256'] or file.checksum}",
        "cmip6:tracking_id": facts["attributes"]["tracking_id"],
        "created": created,
        "updated": created,
        "file:local_path": file.local,
    }


def _folders(files: Files, site: Site, created: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield other ways to the dataset as a whole: Globus, the root's further protocols; nothing for several folders."""
    root = site.roots[files[0][0].root]
    folders = {(file.root, file.folder) for file, _ in files}
    if len(folders) > 1 or not files[0][0].folder:
        return
    local = files[0][0].folder
    ways = [(protocol, f"{SERVICES[protocol]} Link", root.address(protocol, local) + "/") for protocol in root.urls]
    ways = ways[1:] + ([("globus", "Globus Web App Link", root.globus_address(local))] if root.globus else [])
    for protocol, description, href in ways:
        yield protocol, {
            "href": href, "description": description, "type": "text/html", "roles": ["data"],
            "alternate:name": site.node, "node": site.node, "protocol": protocol, "created": created,
            "updated": created, "file:local_path": local,
        }  # fmt: skip
