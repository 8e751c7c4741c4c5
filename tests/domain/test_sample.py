"""The sample stream: its own promises, and the published schemas and vocabulary as judges."""

from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import date, datetime
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar
from uuid import NAMESPACE_URL, uuid3

import jsonschema_rs
import pytest

from fedstac.demo import sample
from fedstac.demo.sample import facts

SHARED = Path(__file__).resolve().parents[3] / "shared"
CV = SHARED / "data" / "cv"
WHOLE = 4_800  # the first items after which no lineage is cut in two

Test = TypeVar("Test", bound=Callable[..., None])


@cache
def drawn(count: int = 5_000, **options: int) -> list[dict[str, Any]]:
    """Return sample items, to be read only: the tests share them."""
    return list(sample.items(count, **options))


def files_of(item: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {key: asset for key, asset in item["assets"].items() if key != "globus"}


def lineages_of(items: list[dict[str, Any]]) -> dict[str, list[tuple[int, str]]]:
    """Return position and version of each item, by base_id, in the order of the stream."""
    lineages = defaultdict(list)
    for position, item in enumerate(items):
        lineages[item["properties"]["base_id"]].append((position, item["properties"]["version"]))
    return lineages


# The stream


def test_the_same_seed_gives_the_same_items() -> None:
    assert list(sample.items(300, seed=7)) == list(sample.items(300, seed=7))


def test_another_seed_gives_other_items() -> None:
    ids = [{item["id"] for item in drawn(300, seed=seed)} for seed in (0, 1)]
    assert len(ids[0] & ids[1]) < 10


@pytest.mark.parametrize("start", [1, 49, 50, 399, 400, 449, 1_234])
def test_an_item_depends_on_its_number_alone(start: int) -> None:
    assert list(sample.items(120, start=start)) == drawn()[start : start + 120]


def test_items_far_down_the_stream_come_at_once() -> None:
    (item,) = sample.items(1, start=10**12)
    assert item["id"] not in {other["id"] for other in drawn()}


def test_a_changed_item_changes_no_other() -> None:
    first, second = list(sample.items(2)), list(sample.items(2))
    first[0]["properties"]["cmip6:realm"].clear()
    first[0]["geometry"]["coordinates"].clear()
    first[0]["stac_extensions"].clear()
    assert [*sample.items(2)] == second


def test_memory_does_not_grow_with_the_number_of_items() -> None:
    stream = sample.items(1_000_000)
    next(stream)
    tracemalloc.start()
    try:
        for _ in islice(stream, 3_000):
            pass
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for _ in islice(stream, 6_000):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 1_000_000


def test_no_items_are_no_items() -> None:
    assert list(sample.items(0)) == []


@pytest.mark.parametrize("wrong", [{"count": -1}, {"start": -1}, {"versions": 0}, {"versions": 51}])
def test_arguments_out_of_range_are_refused_at_once(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        sample.items(**({"count": 1} | wrong))


# Lineages and versions


def test_ids_are_unique() -> None:
    assert len({item["id"] for item in sample.items(30_000)}) == 30_000


def test_lineage_numbers_never_give_the_same_dataset() -> None:
    """Past all combinations, sub-experiments and realizations: the member alone tells them apart."""
    for experiment in facts.EXPERIMENTS:
        for offset in (0, 17):
            members = [sample._member(experiment, turn, offset) for turn in range(30_000)]
            assert len(set(members)) == len(members)


@pytest.mark.parametrize("versions", [1, 2, 5, 50])
def test_lineages_have_one_to_the_given_number_of_versions(versions: int) -> None:
    counts = Counter(len(members) for members in lineages_of(drawn(versions=versions)).values())
    assert min(counts) == 1
    assert max(counts) <= versions
    if versions <= 5:
        assert max(counts) == versions


def test_versions_of_a_lineage_never_come_in_the_order_of_their_dates() -> None:
    for members in lineages_of(drawn()[:WHOLE]).values():
        versions = [version for _, version in members]
        assert len(set(versions)) == len(versions)
        assert len(versions) == 1 or versions != sorted(versions)


def test_versions_of_a_lineage_are_mostly_near_each_other() -> None:
    spreads = [members[-1][0] - members[0][0] for members in lineages_of(drawn()).values() if len(members) > 1]
    near = sum(spread < 50 for spread in spreads) / len(spreads)
    assert 0.9 < near < 1
    assert max(spreads) < 500


@pytest.mark.parametrize("versions", [5, 50])
def test_versions_are_days_of_the_past(versions: int) -> None:
    for item in drawn(versions=versions):
        day = datetime.strptime(item["properties"]["version"] + "+0000", "%Y%m%d%z").date()
        assert date(2018, 1, 1) <= day < date(2025, 1, 1)
        assert item["properties"]["created"].startswith(f"{day.isoformat()}T")


def test_versions_of_a_lineage_have_the_same_files_with_other_contents() -> None:
    names: dict[str, list[str]] = {}
    checksums: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in drawn():
        base_id, files = item["properties"]["base_id"], files_of(item)
        assert names.setdefault(base_id, list(files)) == list(files)
        for name, asset in files.items():
            assert asset["file:checksum"] not in checksums[base_id, name]
            checksums[base_id, name].add(asset["file:checksum"])


# Documents


def test_the_id_says_what_the_properties_say() -> None:
    for item in drawn():
        p = item["properties"]
        assert item["id"] == f"{p['base_id']}.v{p['version']}"
        assert p["title"] == p["base_id"]
        assert p["base_id"].split(".") == [
            p["project"],
            p["cmip6:activity_id"][0],
            *(p[f"cmip6:{name}_id"] for name in ("institution", "source", "experiment", "member", "table", "variable")),
            p["cmip6:grid_label"],
        ]


def test_files_are_one_to_twenty_and_size_is_their_sum() -> None:
    counts = Counter(len(files_of(item)) for item in drawn())
    assert {1, 2, 3, 4, 20} <= counts.keys()
    assert max(counts) == 20
    for item in drawn():
        assert item["properties"]["size"] == sum(asset["file:size"] for asset in files_of(item).values())


def test_tracking_ids_checksums_and_pids_are_unique_and_well_formed() -> None:
    handles, checksums = [], []
    for item in drawn():
        assert item["properties"]["cmip6:pid"] == f"hdl:21.14100/{uuid3(NAMESPACE_URL, item['id'])}"
        for asset in files_of(item).values():
            handles.append(asset["cmip6:tracking_id"])
            checksums.append(asset["file:checksum"])
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(rf"hdl:21\.14100/{uuid}", handle) for handle in handles)
    assert all(re.fullmatch(r"1220[0-9a-f]{64}", checksum) for checksum in checksums)
    assert len(set(handles)) == len(handles)
    assert len(set(checksums)) == len(checksums)


def test_spans_are_real_times_from_year_1_to_9999() -> None:
    starts, ends = [], []
    for item in drawn():
        start, end = (datetime.fromisoformat(item["properties"][name]) for name in ("start_datetime", "end_datetime"))
        assert start < end
        starts.append(start.year)
        ends.append(end.year)
    assert min(starts) == 1
    assert max(ends) == 9999
    assert len(set(starts)) > 20


def test_file_names_carry_the_span_of_the_dataset_without_gaps() -> None:
    for item in drawn():
        p, names = item["properties"], list(files_of(item))
        if p["cmip6:frequency"] == "fx":
            assert [name.count("_") for name in names] == [5]
            continue
        ranges = [re.search(r"_(\d{4,12})-(\d{4,12})\.nc$", name).groups() for name in names]  # type: ignore[union-attr]
        assert ranges[0][0][:4] == p["start_datetime"][:4]
        assert ranges[-1][1][:4] == p["end_datetime"][:4]
        for (_, end), (begin, _) in pairwise(ranges):
            assert int(begin[:4]) == int(end[:4]) + 1


def test_sub_experiments_stand_in_member_and_file_name() -> None:
    hindcasts = [item for item in drawn() if item["properties"]["cmip6:experiment_id"] == "dcppA-hindcast"]
    assert hindcasts
    for item in hindcasts:
        p = item["properties"]
        assert p["cmip6:member_id"] == f"{p['cmip6:sub_experiment_id']}-{p['cmip6:variant_label']}"
        assert all(f"_{p['cmip6:member_id']}_" in name for name in files_of(item))
        assert p["start_datetime"].startswith(p["cmip6:sub_experiment_id"][1:])


def test_footprints_are_global_or_one_ice_sheet() -> None:
    wests: Counter[tuple[str, tuple[float, ...]]] = Counter()
    for item in drawn():
        west, south, east, north = item["bbox"]
        assert -180 <= west < east < 180
        assert -90 <= south < north <= 90
        assert item["geometry"]["coordinates"] == [
            [[west, south], [east, south], [east, north], [west, north], [west, south]]
        ]
        wests[item["properties"]["cmip6:table_id"], (west, south, north)] += 1
    assert wests["ImonAnt", (-180.0, -90.0, -60.0)]
    assert wests["ImonGre", (-75.0, 58.0, 84.0)]
    assert wests["Amon", (-180.0, -90.0, 90.0)]


def test_files_are_at_a_reserved_host_of_the_institution() -> None:
    for item in drawn():
        node = facts.NODES[item["properties"]["cmip6:institution_id"]]
        assert node.endswith(".example")
        for name, asset in files_of(item).items():
            assert asset["href"].startswith(f"https://{node}/")
            assert asset["href"].endswith(f"/{asset['file:local_path']}")
            assert asset["file:local_path"].endswith(f"/v{item['properties']['version']}/{name}")
            assert asset["alternate:name"] == asset["node"] == node


def test_every_model_experiment_variable_and_node_is_used() -> None:
    used = [
        (c.model.source_id, c.experiment.experiment_id, (c.variable.table_id, c.variable.variable_id), c.institution)
        for c in sample._combinations()
    ]
    assert {source for source, *_ in used} == {model.source_id for model in facts.MODELS}
    assert {experiment for _, experiment, *_ in used} == {e.experiment_id for e in facts.EXPERIMENTS}
    assert {variable for *_, variable, _ in used} == {(v.table_id, v.variable_id) for v in facts.VARIABLES}
    assert {institution for *_, institution in used} == set(facts.NODES)


def test_the_collection_has_its_id_as_title_and_no_links() -> None:
    collection = sample.collection()
    assert (collection["id"], collection["title"], collection["links"]) == ("CMIP6", "CMIP6", [])
    assert sample.collection("CMIP7")["title"] == "CMIP7"


# The published schemas, the vocabulary and the real archive's shape


def closed(uri: str) -> Any:
    raise AssertionError(f"{uri} is not among the stored schemas")


@cache
def validator(uri: str) -> jsonschema_rs.Draft7Validator:
    root = SHARED / "schemas"
    resources = [
        (f"https://{path.relative_to(root).as_posix()}", json.loads(path.read_text()))
        for path in sorted(root.rglob("*.json"))
    ]
    registry = jsonschema_rs.Registry(resources, draft=jsonschema_rs.Draft7, retriever=closed)
    return jsonschema_rs.Draft7Validator({"$ref": uri}, registry=registry, retriever=closed, validate_formats=True)


def served(item: dict[str, Any]) -> dict[str, Any]:
    """Return the item with the link that the STAC schema wants and the server adds."""
    href = "https://stac.example/collections/CMIP6"
    return item | {"links": [*item["links"], {"rel": "collection", "type": "application/json", "href": href}]}


@cache
def vocabulary(name: str) -> Any:
    return json.loads((CV / "CMIP6_CVs" / "6.2.60.0" / f"CMIP6_{name}.json").read_text())[name]


@cache
def tables() -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = json.loads((CV / "CMIP6-tables/table_variables.json").read_text())[
        "tables"
    ]
    return found


@cache
def real_items() -> list[dict[str, Any]]:
    with gzip.open(SHARED / "data/cmip6/west-items.ndjson.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def shape(value: Any) -> Any:
    """Return members in their order and types of values; the keys of files do not count."""
    match value:
        case {"assets": dict(assets)}:
            kinds = {"globus" if key == "globus" else "file": asset for key, asset in assets.items()}
            return [(key, shape(inner)) for key, inner in (value | {"assets": kinds}).items()]
        case dict():
            return [(key, shape(inner)) for key, inner in value.items()]
        case list():
            return list(map(shape, value[:1]))
        case _:
            return type(value)


@pytest.mark.shared
@pytest.mark.parametrize(
    "uri",
    [
        "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json",
        "https://stac-extensions.github.io/cmip6/v3.0.2/schema.json",
        "https://stac-extensions.github.io/file/v2.1.0/schema.json",
        "https://stac-extensions.github.io/alternate-assets/v1.2.0/schema.json",
    ],
)
def test_items_are_valid_by_the_published_schemas(uri: str) -> None:
    judge = validator(uri)
    broken = served(drawn()[0]) | {"stac_extensions": "no list"}
    assert not judge.is_valid(broken)
    for item in drawn():
        judge.validate(served(item))


@pytest.mark.shared
def test_the_collection_is_valid_by_the_published_schema() -> None:
    judge = validator("https://schemas.stacspec.org/v1.1.0/collection-spec/json-schema/collection.json")
    judge.validate(sample.collection())
    assert not judge.is_valid({**sample.collection(), "extent": {}})


@pytest.mark.shared
def test_items_have_the_shape_of_the_real_archive() -> None:
    real = {str(shape(item)) for item in real_items()}
    assert {str(shape(item)) for item in drawn()} == real
    assert drawn()[0]["stac_extensions"] == real_items()[0]["stac_extensions"]
    for name in ("project", "access", "latest", "retracted", "datetime", "cmip6:product"):
        assert drawn()[0]["properties"][name] == real_items()[0]["properties"][name]


@pytest.mark.shared
@pytest.mark.parametrize("model", facts.MODELS, ids=lambda model: model.source_id)
def test_models_are_as_registered(model: facts.Model) -> None:
    registered = vocabulary("source_id")[model.source_id]
    relevant = {activity for experiment in facts.EXPERIMENTS for activity in experiment.activities.split()}
    components = registered["model_component"].items()
    assert model.institutions.split() == registered["institution_id"]
    assert set(model.institutions.split()) <= vocabulary("institution_id").keys()
    assert set(model.activities.split()) == set(registered["activity_participation"]) & relevant
    assert model.resolutions == {
        realm: part["native_nominal_resolution"]
        for realm, part in components
        if part["native_nominal_resolution"] != "none"
    }
    assert set(model.resolutions.values()) <= set(vocabulary("nominal_resolution"))


@pytest.mark.shared
@pytest.mark.parametrize("experiment", facts.EXPERIMENTS, ids=lambda experiment: experiment.experiment_id)
def test_experiments_are_as_registered(experiment: facts.Experiment) -> None:
    registered = vocabulary("experiment_id")[experiment.experiment_id]
    assert experiment.activities.split() == registered["activity_id"]
    assert experiment.required.split() == registered["required_model_components"]
    assert experiment.optional.split() == registered["additional_allowed_model_components"]
    assert experiment.length == int(registered["min_number_yrs_per_sim"])
    assert experiment.title == registered["experiment"]
    begins, ends = (re.findall(r"\d{3,}|^1$", registered[name]) for name in ("start_year", "end_year"))
    if experiment.starts:
        first, last = experiment.starts
        assert registered["sub_experiment_id"] == [f"s{year}" for year in range(first, last + 1)]
        assert [str(first), str(last)] == begins
    else:
        assert registered["sub_experiment_id"] == ["none"]
        assert (experiment.years is None) == (not begins)
    if experiment.years:
        assert str(experiment.years[0]) in begins
        assert str(experiment.years[1]) in ends


@pytest.mark.shared
@pytest.mark.parametrize("variable", facts.VARIABLES, ids=lambda v: f"{v.table_id}.{v.variable_id}")
def test_variables_are_as_requested(variable: facts.Variable) -> None:
    assert tables()[variable.table_id][variable.variable_id] == {
        "standard_name": variable.standard_name,
        "units": variable.units,
        "frequency": variable.frequency,
        "realm": variable.realms.split(),
        "long_name": variable.long_name,
    }
    assert variable.frequency in vocabulary("frequency")
    assert variable.table_id in vocabulary("table_id")


def contradictions(properties: dict[str, Any]) -> Iterator[str]:
    """Return the relations of the vocabulary that an item breaks, read from the vocabulary, not the sample's facts."""
    facet = {name.removeprefix("cmip6:"): value for name, value in properties.items() if name.startswith("cmip6:")}
    source = vocabulary("source_id")[facet["source_id"]]
    experiment = vocabulary("experiment_id")[facet["experiment_id"]]
    variable = tables()[facet["table_id"]][facet["variable_id"]]
    types = set(facet["source_type"])
    required = set(experiment["required_model_components"])
    holds = {
        "institution": facet["institution_id"] in source["institution_id"],
        "participation": set(facet["activity_id"]) <= set(source["activity_participation"]),
        "activity": set(facet["activity_id"]) <= set(experiment["activity_id"]),
        "experiment": facet["experiment"] == experiment["experiment"],
        "components": required <= types <= required | set(experiment["additional_allowed_model_components"]),
        "source types": types <= vocabulary("source_type").keys(),
        "sub-experiment": facet["sub_experiment_id"] in experiment["sub_experiment_id"],
        "grid label": facet["grid_label"] in vocabulary("grid_label"),
        "resolution": facet["nominal_resolution"]
        in {part["native_nominal_resolution"] for part in source["model_component"].values()},
        "frequency": facet["frequency"] == variable["frequency"],
        "realm": facet["realm"] == variable["realm"],
        "units": facet["variable_units"] == variable["units"],
        "standard name": facet["variable_cf_standard_name"] == variable["standard_name"],
        "long name": facet["variable_long_name"] == variable["long_name"],
    }
    return (name for name, is_kept in holds.items() if not is_kept)


@pytest.mark.shared
def test_items_contradict_no_relation_of_the_vocabulary() -> None:
    found = {item["id"]: list(contradictions(item["properties"])) for item in drawn()}
    assert {item_id: names for item_id, names in found.items() if names} == {}


@pytest.mark.shared
def test_the_vocabulary_check_notices_a_contradiction() -> None:
    properties = drawn()[0]["properties"] | {"cmip6:institution_id": "PCMDI", "cmip6:variable_units": "furlong"}
    assert list(contradictions(properties)) == ["institution", "units"]
