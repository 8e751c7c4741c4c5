"""Items from facts: alike for the same files, valid by the rules of CMIP6, and none where files are at odds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid3

import pytest

from fedstac.domain.errors import Severity
from fedstac.domain.vocabulary import Vocabulary
from fedstac.scan import Fault, Scan
from fedstac.scan import items as making
from fedstac.scan.site import Site, site
from fedstac.vocabularies.checker import open_checker
from tests.scan.files import (
    ATTRIBUTES,
    FIXED,
    HINDCAST,
    VARIABLE,
    amon,
    cells,
    centres,
    drs,
    ocean,
    site_of,
    tracking_id,
)

Item = dict[str, Any]


def scanned(root: Path, here: Site | None = None, **options: Any) -> tuple[list[Item], list[Fault]]:
    made = list(Scan(str(root), here or site_of(root), state=None, **options).run())
    return [one for one in made if isinstance(one, dict)], [one for one in made if isinstance(one, Fault)]


@pytest.fixture(scope="module")
def cmip6() -> Vocabulary:
    vocabulary = open_checker(pins={"CMIP6": "6.2.60.0"}).vocabularies.current("CMIP6")
    assert vocabulary is not None
    return vocabulary


def findings(item: Item) -> list[Any]:
    checker = open_checker(pins={"CMIP6": "6.2.60.0"})
    return list(checker.findings(item, "CMIP6", checker.vocabularies.current("CMIP6")))


def test_two_files_are_a_dataset(root: Path) -> None:
    first, second = amon(1850, 1899).write(drs(root)), amon(1900, 1949).write(drs(root))
    [item], faults = scanned(root)
    assert faults == []
    assert findings(item) == []
    properties = item["properties"]
    id = "CMIP6.CMIP.NCAR.CESM2.historical.r1i1p1f1.Amon.tas.gn.v20190308"
    assert (item["id"], properties["title"], properties["version"]) == (id, id[:-10], "20190308")
    assert properties["size"] == first.stat().st_size + second.stat().st_size
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "1850-01-01T00:00:00Z",
        "1949-12-31T23:59:59Z",
    )
    assert properties["cmip6:pid"] == f"hdl:21.14100/{uuid3(NAMESPACE_URL, id)}"
    assert properties["cmip6:source_type"] == ["AOGCM", "BGC"]
    assert list(item["assets"]) == [first.name, second.name]
    asset = item["assets"][first.name]
    assert asset["href"] == f"https://esgf.example.org/thredds/fileServer/data/{first.relative_to(root)}"
    assert asset["file:local_path"] == str(first.relative_to(root))
    assert asset["cmip6:tracking_id"] == tracking_id(first.name)
    assert asset["created"] == "2019-01-16T22:15:42Z"
    assert [link["rel"] for link in item["links"]] == ["cite-as", "describedby"]


def test_the_pid_is_of_the_id_and_version_3() -> None:
    id = "CMIP6.C4MIP.NOAA-GFDL.GFDL-ESM4.1pctCO2-bgc.r1i1p1f1.Amon.ps.gr1.v20180701"
    assert UUID(making.pid(id).removeprefix("hdl:21.14100/")).version == 3
    assert making.pid(id) != making.pid(id.replace("v2018", "v2019"))


def test_the_same_files_give_the_same_item(root: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.sqlite"
    for first in (1850, 1900, 1800):
        amon(first, first + 9).write(drs(root))
    runs = [
        [one for one in Scan(str(root), site_of(root), state=state, jobs=jobs).run() if isinstance(one, dict)]
        for jobs in (3, 1)
    ]
    assert runs[0] == runs[1]


def test_an_ocean_on_a_curvilinear_grid(root: Path) -> None:
    ocean().write(root / "v20190308")
    [item], faults = scanned(root)
    assert faults == []
    assert [one for one in findings(item) if one.severity is Severity.ERROR] == []
    assert item["bbox"][0::2] == [-180, 180]


def test_a_fixed_field_holds_at_all_times(root: Path) -> None:
    FIXED.write(root / "v20190308")
    [item], faults = scanned(root)
    assert faults == []
    assert [one for one in findings(item) if one.severity is Severity.ERROR] == []
    span = item["properties"]["start_datetime"], item["properties"]["end_datetime"]
    assert span == ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")


def test_a_sub_experiment_is_part_of_the_member_and_30_february_is_mapped(root: Path, cmip6: Vocabulary) -> None:
    name = "tas_Amon_EC-Earth3_dcppA-hindcast_s1960-r2i1p1f1_gr_196102-196103.nc"
    replace(HINDCAST, name=name, time_edges=None, times=[58.5, 59.5]).write(root / "v20190308")
    [item], faults = scanned(root, vocabulary=cmip6)
    assert faults == []
    assert [one for one in findings(item) if one.severity is Severity.ERROR] == []
    properties = item["properties"]
    assert properties["cmip6:member_id"] == "s1960-r2i1p1f1"
    assert properties["cmip6:experiment"].startswith("hindcast initialized")  # the file does not say it
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "1961-02-28T12:00:00Z",
        "1961-02-28T12:00:00Z",
    )


def test_a_region_across_the_antimeridian(root: Path) -> None:
    grid = {"latitudes": centres(-20, 0, 5), "latitude_edges": cells(-20, 0, 5), "longitudes": centres(160, 200, 8),
            "longitude_edges": cells(160, 200, 8)}  # fmt: skip
    amon(**grid).write(drs(root))
    [item], faults = scanned(root)
    assert faults == []
    assert findings(item) == []
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["bbox"] == [160, -20, -160, 0]


def test_without_coordinates_there_is_no_geometry(root: Path) -> None:
    amon(latitudes=None, latitude_edges=None, longitudes=None, longitude_edges=None).write(drs(root))
    [item], _ = scanned(root)
    assert item["geometry"] is None
    assert "bbox" not in item
    assert findings(item) == []


def test_more_ways_to_the_folder_are_assets_of_their_own(root: Path) -> None:
    amon().write(drs(root))
    described = {
        "node": "esgf.example.org",
        "roots": [{
            "folder": str(root), "globus": {"endpoint": "d1817efe-6324-077f-841a-11d2ca30cd2e", "path": "/data"},
            "urls": {"opendap": "https://esgf.example.org/dodsC", "https": "https://esgf.example.org/files"},
        }],
    }  # fmt: skip
    [item], _ = scanned(root, site(described, "test"))
    assert findings(item) == []
    [_, opendap, globus] = item["assets"].values()
    local = str(drs(root).relative_to(root))
    assert (opendap["protocol"], opendap["href"]) == ("opendap", f"https://esgf.example.org/dodsC/{local}/")
    assert globus["href"].endswith(f"&origin_path=/data/{local}/")
    assert item["properties"]["access"] == ["HTTPServer", "OPENDAP", "Globus"]


# --- files at odds ---


def rules(faults: list[Fault]) -> list[str]:
    return [fault.rule for fault in faults]


@pytest.mark.parametrize(
    ("attributes", "variable", "name"),
    [
        ({"nominal_resolution": "250 km"}, {}, "cmip6:nominal_resolution"),
        ({"realm": "atmos land"}, {}, "cmip6:realm"),
        ({"grid": None}, {}, "cmip6:grid"),
        ({}, {"units": "degC"}, "cmip6:variable_units"),
    ],
)
def test_files_that_disagree_are_both_named(
    root: Path, attributes: dict[str, Any], variable: dict[str, Any], name: str
) -> None:
    one = amon(1850, 1850).write(drs(root))
    other = amon(1851, 1851, attributes=attributes, variable=variable).write(drs(root))
    items, [fault] = scanned(root)
    assert items == []
    assert fault.rule == "facets-disagree"
    assert str(one) in fault.message
    assert str(other) in fault.message
    assert name in fault.message


def test_a_stray_file_in_a_versions_folder_keeps_back_both_datasets(root: Path) -> None:
    one, stray = (
        amon().write(drs(root)),
        amon(member="r2i1p1f1").write(drs(root)),
    )
    amon(member="r3i1p1f1").write(drs(root, member="r3i1p1f1"))
    items, [fault] = scanned(root)
    assert [item["properties"]["cmip6:variant_label"] for item in items] == ["r3i1p1f1"]
    assert fault.rule == "mixed-folder"
    assert str(one) in fault.message
    assert str(stray) in fault.message


def test_many_datasets_in_a_flat_folder_are_no_fault(root: Path) -> None:
    amon(1850, 1850).write(root)
    amon(1851, 1851).write(root)
    ocean().write(root)
    items, faults = scanned(root, version="20200101")
    assert [len(item["assets"]) for item in items] == [2, 1]
    assert faults == []


def test_a_dataset_that_lacks_a_file_is_kept_back_and_others_go_on(root: Path) -> None:
    amon(1850, 1850).write(drs(root))
    broken = amon(1851, 1851).write(drs(root))
    broken.write_bytes(broken.read_bytes()[:5000])
    FIXED.write(drs(root, variable="areacella"))
    items, faults = scanned(root)
    assert [item["properties"]["cmip6:variable_id"] for item in items] == ["areacella"]
    assert rules(faults) == ["unreadable", "incomplete"]
    assert faults[0].path == str(broken)
    assert "truncated" in faults[0].message
    assert str(broken) in faults[1].message


def test_two_files_of_one_name_in_a_dataset(root: Path) -> None:
    amon().write(root / "a/v20200101")
    amon().write(root / "b/v20200101")
    items, faults = scanned(root)
    assert items == []
    assert sorted(rules(faults)) == ["overlap", "same-name", "tracking-id"]


def test_overlaps_and_shared_tracking_ids_are_warnings(root: Path) -> None:
    amon(1850, 1852).write(drs(root))
    amon(1852, 1853, attributes={"tracking_id": tracking_id(amon(1850, 1852).name)}).write(drs(root))
    amon(1854, 1854).write(drs(root))
    [item], faults = scanned(root)
    assert len(item["assets"]) == 3
    assert [(fault.rule, fault.severity) for fault in faults] == [
        ("tracking-id", Severity.WARNING), ("overlap", Severity.WARNING)
    ]  # fmt: skip


def test_a_file_within_the_time_of_another_is_an_overlap_with_it(root: Path) -> None:
    for first, last in ((1850, 1860), (1851, 1852), (1855, 1856), (1861, 1861)):
        amon(first, last).write(drs(root))
    _, faults = scanned(root)
    assert rules(faults) == ["overlap", "overlap"]
    assert all("185001-186012.nc goes up to 1860-12-31T23:59:59" in fault.message for fault in faults)


def test_any_unusable_file_in_a_versions_folder_keeps_its_dataset_back(root: Path) -> None:
    amon().write(drs(root))
    (drs(root) / "of another name.nc").write_text("broken")
    items, faults = scanned(root)
    assert (items, rules(faults)) == ([], ["unreadable", "incomplete"])


def test_in_a_flat_folder_only_the_neighbours_by_name_are_kept_back(root: Path) -> None:
    amon(1850, 1850).write(root)
    amon(member="r2i1p1f1").write(root)
    (root / amon(1851, 1851).name).write_text("broken")
    [item], faults = scanned(root, version="20200101")
    assert item["properties"]["cmip6:variant_label"] == "r2i1p1f1"
    assert rules(faults) == ["unreadable", "incomplete"]


def test_facets_come_from_attributes_alone(root: Path) -> None:
    file = amon(attributes={"experiment": None}, variable={"standard_name": None, "long_name": None})
    file.write(drs(root))
    [item], _ = scanned(root)
    assert not {"cmip6:experiment", "cmip6:variable_cf_standard_name"} & item["properties"].keys()


def test_what_the_file_leaves_out_is_the_vocabularys(root: Path, cmip6: Vocabulary) -> None:
    file = amon(attributes={"experiment": None}, variable={"standard_name": None})
    file.write(drs(root))
    [item], _ = scanned(root, vocabulary=cmip6)
    properties = item["properties"]
    assert properties["cmip6:experiment"] == ATTRIBUTES["experiment"]
    assert properties["cmip6:variable_cf_standard_name"] == VARIABLE["standard_name"]
    assert findings(item) == []


# --- datasets beside each other ---


def test_a_newer_version_that_covers_less_is_named(root: Path) -> None:
    """The files of one run lie in the folders of two versions."""
    for year in (1850, 1851, 1852):
        amon(year, year).write(drs(root, "20180912"))
    amon(1853, 1853).write(drs(root, "20180913"))
    made, [fault] = scanned(root)
    assert [item["id"][-9:] for item in made] == ["v20180912", "v20180913"]
    assert (fault.rule, fault.severity, fault.path) == ("coverage", Severity.WARNING, made[1]["id"])
    for part in (made[0]["id"], "1850-01-01T00:00:00Z to 1852-12-31T23:59:59Z", made[1]["id"], "1853-01-01T00:00:00Z",
                 "--ignore-version-folders"):  # fmt: skip
        assert part in fault.message


def test_files_in_two_versions_folders_can_be_one_version(root: Path) -> None:
    amon(1850, 1852).write(drs(root, "20180912"))
    amon(1853, 1853).write(drs(root, "20180913"))
    [item], faults = scanned(root, version="20180913", ignore_folders=True)
    assert faults == []
    assert item["id"].endswith(".v20180913")
    properties = item["properties"]
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "1850-01-01T00:00:00Z",
        "1853-12-31T23:59:59Z",
    )
    paths = [asset["file:local_path"].split("/")[-2] for asset in item["assets"].values()]
    assert paths == ["v20180912", "v20180913"]


def test_a_newer_version_that_covers_as_much_is_nothing_to_say(root: Path) -> None:
    amon(1850, 1851).write(drs(root, "20180912"))
    amon(1850, 1853).write(drs(root, "20180913"))
    made, faults = scanned(root)
    assert (len(made), faults) == (2, [])


def test_an_unchanged_file_may_be_in_two_versions(root: Path) -> None:
    amon(1850, 1850).write(drs(root, "20180912"))
    same = drs(root, "20180913")
    amon(1850, 1850).write(same)
    amon(1851, 1851).write(same)
    for path in same.glob("*185001*"):  # byte for byte
        path.write_bytes((drs(root, "20180912") / path.name).read_bytes())
    made, faults = scanned(root)
    assert (len(made), faults) == (2, [])


def test_one_run_under_two_names_is_named(root: Path) -> None:
    path = amon().write(drs(root))
    other = amon(member="r2i1p1f1", attributes={"variant_label": "r2i1p1f1"})
    other = other.but(tracking_id=tracking_id(path.name))
    other.write(drs(root, member="r2i1p1f1"))
    made, faults = scanned(root)
    assert len(made) == 2
    assert [fault.rule for fault in faults] == ["tracking-id"]
