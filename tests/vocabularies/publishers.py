"""Small vocabularies in the layouts of those who publish them, written into a folder or an archive."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]
METADATA = {"version_metadata": {"CV_collection_version": "6.2.1.0"}}

CMIP6_FILES: dict[str, Json] = {
    "CMIP6_DRS.json": {
        "DRS": {
            "directory_path_template": "<mip_era>/<activity_id>/<source_id>/<version>",
            "filename_template": "<variable_id>_<source_id >[_<time_range>].nc",
        },
        **METADATA,
    },
    "CMIP6_activity_id.json": {"activity_id": {"CMIP": "The DECK", "DAMIP": "Detection and attribution"}, **METADATA},
    "CMIP6_institution_id.json": {"institution_id": {"AWI": "Bremerhaven", "NCC": "Oslo"}, **METADATA},
    "CMIP6_source_type.json": {"source_type": {"AOGCM": "coupled", "AER": "aerosols", "BGC": ""}, **METADATA},
    "CMIP6_realm.json": {"realm": {"atmos": "Atmosphere"}, **METADATA},
    "CMIP6_frequency.json": {"frequency": {"mon": "monthly"}, **METADATA},
    "CMIP6_table_id.json": {"table_id": ["Amon"], **METADATA},
    "CMIP6_source_id.json": {
        "source_id": {
            "ModelA": {
                "activity_participation": ["CMIP"],
                "institution_id": ["AWI"],
                "label_extended": "Model A",
                "license_info": {"id": "CC BY 4.0"},
            },
            "ModelB": {"activity_participation": ["CMIP", "DAMIP"], "institution_id": ["NCC"]},
        },
        **METADATA,
    },
    "CMIP6_experiment_id.json": {
        "experiment_id": {
            "historical": {
                "activity_id": ["CMIP"],
                "experiment": "the recent past",
                "required_model_components": ["AOGCM"],
                "additional_allowed_model_components": ["AER", ""],
            }
        },
        **METADATA,
    },
    "mip_era.json": {"mip_era": ["CMIP6"], **METADATA},
}
TABLES: Json = {
    "tables": {
        "Amon": {
            "tas": {
                "units": "K",
                "standard_name": "air_temperature",
                "frequency": "mon",
                "realm": ["atmos"],
                "long_name": "Air Temperature",
            }
        }
    }
}


def property_of(name: str, kind: str = "string", **members: Any) -> Json:
    return {f"cmip6:{name}": {"type": kind, "required": True, "terms": name, **members}}


CMIP6_RECIPE: Json = {
    "project": "CMIP6",
    "title": "CMIP6",
    "sources": [{"name": "CVs", "version": "[version]", "licence": "CC-BY-4.0", "url": "https://example.org"}],
    "prefix": "cmip6",
    "id_template": "CMIP6.{cmip6:activity_id}.{cmip6:source_id}.v{version}",
    "file_name_template": "{cmip6:variable_id}_{cmip6:source_id}[_{time_range}].nc",
    "directory_template": "CMIP6/{cmip6:activity_id}/{cmip6:source_id}/v{version}",
    "parts": {"mip_era": "CMIP6", "version": "v{version}"},
    "institution": "cmip6:institution_id",
    "facets": ["cmip6:source_id"],
    "extensions": [],
    "properties": {
        **property_of("activity_id", "strings"),
        **property_of("institution_id"),
        **property_of("source_id"),
        **property_of("source_type", "strings"),
        **property_of("experiment_id"),
        **property_of("table_id"),
        **property_of("variable_id"),
        **property_of("realm", "strings"),
        "cmip6:variable_units": {"type": "string", "terms": "variable_units"},
        "cmip6:variant_label": {"type": "string", "pattern": r"^r\d+$"},
    },
    "values_of": {"variable_units": "table_variable.units"},
    "relations": [
        {
            "rule": "source-institution",
            "of": ["cmip6:source_id"],
            "terms": "source_id",
            "attribute": "institution_id",
            "property": "cmip6:institution_id",
            "holds": "allows",
        },
        {
            "rule": "model-components",
            "of": ["cmip6:experiment_id"],
            "terms": "experiment_id",
            "attribute": "allowed_model_components",
            "property": "cmip6:source_type",
            "holds": "allows",
        },
        {
            "rule": "table-variable",
            "of": ["cmip6:table_id", "cmip6:variable_id"],
            "terms": "table_variable",
            "attribute": "units",
            "property": "cmip6:variable_units",
            "holds": "equals",
        },
    ],
}


def context(data_type: str, **references: str) -> Json:
    base = "https://esgvoc.ipsl.fr/resource"
    inner = {
        name: {"@id": f"{base}/universe/{name}/", "@type": "@id", "@context": {"@base": f"{base}/{where}/"}}
        for name, where in references.items()
    }
    return {"@context": {"id": "@id", "type": "@type", "@base": f"{base}/universe/{data_type}/", **inner}}


def term(identifier: str, data_type: str, **members: Any) -> Json:
    return {"@context": "000_context.jsonld", "id": identifier, "type": data_type, **members}


CATALOG = """\
version: v9.0.0
dataset_properties:
  - source_collection: activity
    catalog_field_name: activity_id
    catalog_field_value_type: string
    is_required: true
  - source_collection: experiment
    catalog_field_name: experiment_id
    catalog_field_value_type: string
    is_required: true
  - source_collection: experiment
    catalog_field_name: parent_experiment_id
    catalog_field_value_type: string
    is_required: false
  - source_collection: variant_label
    catalog_field_value_type: string
    is_required: true
  - source_collection: branded_variable
    catalog_field_name: variable_branded_name
    catalog_field_value_type: string
    is_required: true
  - source_collection: branded_variable
    source_collection_key: cf_units
    catalog_field_name: variable_units
    catalog_field_value_type: string
    is_required: true
  - source_collection: realm
    catalog_field_value_type: string_array
    is_required: true
  - source_collection: institution
    catalog_field_name: institution_id
    catalog_field_value_type: string
    is_required: true
  - source_collection: null
    catalog_field_name: branch_time
    catalog_field_value_type: number
    is_required: false
file_properties:
  - source_collection: tracking_id
    catalog_field_value_type: string
    is_required: false
link_properties:
  - rel: related
    link_pattern: "^https?://errata.esgf.io/.*$"
    title: Errata issue
    is_required: false
"""
DRS = """\
directory:
  parts: [{source_collection: mip_era}, {source_collection: activity}, {source_collection: directory_date}]
file_name:
  parts: [{source_collection: experiment}, {source_collection: variant_label}, {source_collection: time_range}]
dataset_id:
  parts:
    - {source_collection: mip_era}
    - {source_collection: activity}
    - {source_collection: experiment}
    - {source_collection: variant_label}
    - {source_collection: directory_date}
"""
CMIP7_FILES: dict[str, Json | str] = {
    "esgvoc_manifest.yaml": "cv_version: 1.2.3\nuniverse_version: 1.0.5\n",
    "project_specs.yaml": "project_id: cmip7\ndrs_name: CMIP7\n",
    "catalog_specs.yaml": CATALOG,
    "drs_specs.yaml": DRS,
    "activity/000_context.jsonld": context("activity"),
    "activity/cmip.json": term("cmip", "activity"),
    "experiment/000_context.jsonld": context("experiment", activity="cmip7/activity"),
    "experiment/picontrol.json": term("picontrol", "experiment", tier=1),
    "experiment/gone.json": term("gone", "experiment"),
    "variant_label/000_context.jsonld": context("variant_label"),
    "variant_label/r.json": term("r", "variant_label"),
    "branded_variable/000_context.jsonld": context("known_branded_variable"),
    "branded_variable/tas_tavg.json": term("tas_tavg", "known_branded_variable"),
    "realm/000_context.jsonld": context("realm"),
    "realm/atmos.json": term("atmos", "realm", drs_name="atmos"),
    "institution/000_context.jsonld": context("organisation"),
    "institution/awi.json": term("awi", "organisation"),
    "tracking_id/000_context.jsonld": context("tracking_id"),
    "tracking_id/uuid.json": term("uuid", "tracking_id", regex="^hdl:[a-f0-9]{8}$"),
}
UNIVERSE_FILES: dict[str, Json | str] = {
    "esgvoc_manifest.yaml": "cv_version: 1.0.6\n",
    "activity/cmip.json": term("cmip", "activity", drs_name="CMIP", description="The DECK"),
    "experiment/000_context.jsonld": context("experiment", activity="universe/activity"),
    "experiment/picontrol.json": term("picontrol", "experiment", drs_name="piControl", activity="cmip"),
    "variant_label/r.json": term("r", "variant_label", regex="^r\\d+$"),
    "known_branded_variable/tas_tavg.json": term(
        "tas_tavg", "known_branded_variable", drs_name="tas_tavg", cf_units="K ", realm="atmos"
    ),
    "organisation/awi.json": term("awi", "organisation", drs_name="AWI"),
}
CMIP7_RECIPE: Json = {
    "project": "CMIP7",
    "title": "CMIP7",
    "sources": [{"name": "universe", "version": "[universe]", "licence": "CC-BY-4.0", "url": "https://example.org"}],
    "prefix": "cmip7",
    "id_template": "CMIP7.{cmip7:activity_id}.{cmip7:experiment_id}.{cmip7:variant_label}.v{version}",
    "file_name_template": "{cmip7:experiment_id}_{cmip7:variant_label}[_{time_range}].nc",
    "directory_template": "CMIP7/{cmip7:activity_id}/v{version}",
    "parts": {"mip_era": "CMIP7", "directory_date": "v{version}"},
    "institution": "cmip7:institution_id",
    "facets": ["cmip7:activity_id"],
    "extensions": [{"name": "cmip7", "uris": ["https://example.org/cmip7/[catalog]/schema.json"], "required": True}],
    "properties": {"size": {"type": "integer", "minimum": 0}},
    "relations": [
        {
            "rule": "experiment-activity",
            "of": ["cmip7:experiment_id"],
            "terms": "experiment",
            "attribute": "activity",
            "property": "cmip7:activity_id",
            "holds": "allows",
        },
        {
            "rule": "table-variable",
            "of": ["cmip7:variable_branded_name"],
            "terms": "branded_variable",
            "attribute": "cf_units",
            "property": "cmip7:variable_units",
            "holds": "equals",
        },
    ],
}


def write(folder: Path, files: Mapping[str, Json | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def pack(path: Path, files: Mapping[str, Json | str], *, top: str = "CVs-1.2.3/") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            raw = (content if isinstance(content, str) else json.dumps(content)).encode()
            member = tarfile.TarInfo(top + name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def recipes(folder: Path) -> Path:
    """Return a folder of snapshots with the projects' own parts, and no snapshot yet."""
    return write(folder, {"CMIP6/project.json": CMIP6_RECIPE, "CMIP7/project.json": CMIP7_RECIPE})
