"""Sample data: a stream of valid CMIP6 datasets of any length, for demonstrations, tests and load.

Every document has the members, extensions and assets of the real archive's, and every combination of facets is one that
the vocabulary allows. Nothing in it is real data: checksums, sizes, tracking ids and dates are derived from a hash, the
data nodes have reserved names (RFC 2606). Pure and deterministic: item n depends on the seed, n and `versions` alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache, lru_cache
from hashlib import blake2b, shake_256
from itertools import accumulate
from random import Random
from typing import Any, Final, NamedTuple, cast

from fedstac.demo.sample.facts import EXPERIMENTS, MODELS, NODES, VARIABLES, Experiment, Model, Variable
from fedstac.domain.identifiers import uuid_of_handle

_EXTENSIONS: Final = (
    "https://stac-extensions.github.io/cmip6/v3.0.2/schema.json",
    "https://stac-extensions.github.io/alternate-assets/v1.2.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)

_OCEAN: Final = frozenset({"ocean", "seaIce", "ocnBgchem"})
_LAND: Final = frozenset({"land", "landIce"})
_AIR: Final = frozenset({"atmos", "aerosol", "atmosChem"})
# What a run of each kind consists of, so that an uncoupled ocean reports no air temperature.
_RUNS: Final = {"AOGCM": _AIR | _LAND | _OCEAN, "AGCM": _AIR | _LAND, "OGCM": _OCEAN, "LAND": _LAND}
_NEEDS: Final = {
    "AOGCM": {"atmos", "land", "ocean", "seaIce"},
    "AGCM": {"atmos", "land"},
    "OGCM": {"ocean", "seaIce"},
    "LAND": {"land"},
    "AER": {"aerosol"},
    "CHEM": {"atmosChem"},
    "BGC": {"ocnBgchem"},
}

# CMIP6 marks zonal means and the two ice sheets in the grid label; the table alone decides it.
_GRID_SUFFIX: Final = {"AERmonZ": "z", "ImonAnt": "a", "ImonGre": "g"}
_DEGREES: Final = {"5 km": 0.05, "25 km": 0.25, "50 km": 0.5, "100 km": 0.9375, "250 km": 1.875, "500 km": 2.8125}
_SPECS: Final = ("01.00.27", "01.00.28", "01.00.29", "01.00.30", "01.00.31", "01.00.32", "01.00.33")

# Where a simulation has its own calendar of years, models begin anywhere: from year 1 to one that ends in 9999.
_ORIGINS: Final = (1, 1, 1, 101, 401, 1001, 1850, 1850, 1850, 2000, 3201, 5000, 7001, 9000, 9999, 9999)
_LAST_YEAR: Final = 9999  # of RFC 3339 and of Python's datetime
# Most datasets have few files, some have twenty. Indexed by five bits of the lineage's hash.
_FILE_COUNTS: Final = (1,) * 8 + (2,) * 8 + (3,) * 7 + (4,) * 5 + (6,) * 2 + (12, 20)
_FILE_NOISE: Final = 104  # hexadecimal digits for one file: 64 of checksum, 32 of tracking id, 8 of size
_ITEM_NOISE: Final = 36  # for one item: 32 of the persistent id, 4 of the time of day

_BLOCK: Final = 50  # items that are shuffled together, hence how far apart versions of one lineage usually are
_FAR: Final = 8  # blocks between the two that exchange one item, so that some versions are far apart
_FIRST_DAY: Final = date(2018, 1, 1).toordinal()

TWO_VERSIONS: Final = 0.33  # of the lineages of skewed_items
FREQUENT: Final = (  # what skewed_items has most of
    "historical", "ssp585", "ssp245", "piControl", "ssp126", "amip", "Amon tas", "Amon pr", "day tas", "Amon ua",
)  # fmt: skip


class _Clock(NamedTuple):
    """How one frequency writes its first and last moment of a year: in file names (CMIP6 DRS) and as a time."""

    name_start: str
    name_end: str
    start: str
    end: str


_CLOCKS: Final = {
    "3hr": _Clock("01010130", "12312230", "-01-01T01:30:00Z", "-12-31T22:30:00Z"),
    "3hrPt": _Clock("01010000", "12312100", "-01-01T00:00:00Z", "-12-31T21:00:00Z"),
    "6hr": _Clock("01010300", "12312100", "-01-01T03:00:00Z", "-12-31T21:00:00Z"),
    "6hrPt": _Clock("01010000", "12311800", "-01-01T00:00:00Z", "-12-31T18:00:00Z"),
    "day": _Clock("0101", "1231", "-01-01T12:00:00Z", "-12-31T12:00:00Z"),
    "mon": _Clock("01", "12", "-01-16T12:00:00Z", "-12-16T12:00:00Z"),
    "yr": _Clock("", "", "-07-02T12:00:00Z", "-07-02T12:00:00Z"),
    "yrPt": _Clock("", "", "-01-01T00:00:00Z", "-12-31T00:00:00Z"),
    "fx": _Clock("", "", "-01-01T00:00:00Z", "-12-31T00:00:00Z"),
}


@dataclass(frozen=True, slots=True)
class _Combination:
    """One allowed choice of every facet except the member and the version."""

    model: Model
    experiment: Experiment
    variable: Variable
    institution: str
    activity: str
    source_types: tuple[str, ...]
    resolution: str
    grid_label: str


@dataclass(frozen=True, slots=True)
class _Lineage:
    """What all versions of one dataset share."""

    combination: _Combination
    member_id: str
    sub_experiment_id: str
    variant_label: str
    years: tuple[int, int]  # first and last
    files: int
    first_day: int  # of the oldest version, as a proleptic ordinal
    gap: int  # days from one version to the next
    specs: str


def items(count: int, *, seed: int = 0, versions: int = 5, start: int = 0) -> Iterator[dict[str, Any]]:
    """Return items start … start + count - 1 of the endless stream of `seed`: new, valid CMIP6 items (STAC 1.1.0).

    A lineage has one to `versions` versions (at most 50); those of a lineage that is there as a whole are never in the
    order of their dates. They stand within 50 items of each other, except for one item in fifty, which lies some 400
    away. Every document is built anew and is the caller's. Memory does not grow with `count`.
    """
    if count < 0 or start < 0:
        raise ValueError("count and start are not negative")
    if not 1 <= versions <= _BLOCK:
        raise ValueError(f"versions is 1 to {_BLOCK}")
    return _stream(range(start, start + count), seed, versions)


def skewed_items(count: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Return items whose facets are as uneven as the archive's: few models, experiments, variables have most of them.

    Values go with each other and with the dates, because the years follow from the experiment. A third of the lineages
    has two versions; `latest` is right in all of them. Every item is new. The first items are the same for every count.
    """
    combinations = _shuffled_combinations(seed)
    weights = list(accumulate(map(_frequency_weights(seed), combinations)))
    draw = Random(seed)  # noqa: S311 - no secret
    turns: Counter[int] = Counter()
    remaining = count
    while remaining > 0:
        for index in draw.choices(range(len(combinations)), cum_weights=weights, k=10_000):  # whatever remains
            number = turns[index] * len(combinations) + index
            turns[index] += 1
            lineage = _lineage(number, combinations, seed, 2)
            ranks = range(1 + (draw.random() < TWO_VERSIONS))
            for rank in ranks:
                if remaining > 0:
                    item = _item(lineage, rank, f"{seed}/skewed/{number}/{rank}")
                    cast("dict[str, Any]", item["properties"])["latest"] = rank == ranks[-1] or remaining == 1
                    yield item
                    remaining -= 1


def _frequency_weights(seed: int) -> Callable[[_Combination], float]:
    """Return how often each combination is there: the product of one over the ranks of its parts."""

    def ranks(names: Iterable[str]) -> dict[str, int]:
        in_order = sorted(set(names), key=lambda name: blake2b(f"{seed}/rank/{name}".encode()).digest())
        first = [name for name in FREQUENT if name in in_order]
        return {name: n for n, name in enumerate((*first, *(name for name in in_order if name not in first)), 1)}

    models = ranks(model.source_id for model in MODELS)
    experiments = ranks(experiment.experiment_id for experiment in EXPERIMENTS)
    variables = ranks(f"{variable.table_id} {variable.variable_id}" for variable in VARIABLES)

    def weight(combination: _Combination) -> float:
        variable = combination.variable
        return 1.0 / (
            models[combination.model.source_id]
            * experiments[combination.experiment.experiment_id]
            * variables[f"{variable.table_id} {variable.variable_id}"]
        )

    return weight


def collection(collection_id: str = "CMIP6") -> dict[str, Any]:
    """Return a valid STAC 1.1.0 Collection for the items: global, open in time, without links."""
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": collection_id,
        "title": collection_id,
        "description": f"{collection_id}: sample datasets of coupled climate models. Generated, not real data.",
        "license": "CC-BY-4.0",
        "extent": {
            "spatial": {"bbox": [[-180.0, -90.0, 180.0, 90.0]]},
            "temporal": {"interval": [["0001-01-01T00:00:00Z", None]]},
        },
        "links": [],
    }


def _stream(numbers: range, seed: int, versions: int) -> Iterator[dict[str, Any]]:
    combinations = _shuffled_combinations(seed)
    # Two blocks are looked at again _FAR blocks later; the cache is larger than that and no larger.
    plan = lru_cache(maxsize=4 * _FAR)(lambda block: _plan(block, seed, versions))
    for number in numbers:
        lineage_number, rank = _entry(number, plan)
        lineage = _lineage(lineage_number, combinations, seed, versions)
        yield _item(lineage, rank, f"{seed}/item/{number}")


def _entry(number: int, plan: Callable[[int], list[tuple[int, int]]]) -> tuple[int, int]:
    """Return lineage number and rank (0 is the oldest version) of item `number`.

    The last item of one block changes place with the first of the block `_FAR` later. Last moves later and first moves
    earlier, so neither overtakes another version of its lineage and the order within each stays what _plan made it.
    """
    block, slot = divmod(number, _BLOCK)
    later = bool(block & _FAR)
    if later and slot == 0:
        return plan(block - _FAR)[-1]
    if not later and slot == _BLOCK - 1:
        return plan(block + _FAR)[0]
    return plan(block)[slot]


def _plan(block: int, seed: int, versions: int) -> list[tuple[int, int]]:
    """Return lineage number and rank for each slot of a block: whole lineages, mixed, none in order of its dates."""
    noise = shake_256(f"{seed}/block/{block}".encode()).digest(5 * _BLOCK)
    owners: list[int] = []
    for index in range(_BLOCK):
        # few versions are more frequent than many: each count up to a limit that is itself drawn
        limit = 1 + noise[index] % versions
        owners += [block * _BLOCK + index] * (1 + noise[_BLOCK + index] % limit)
        if len(owners) >= _BLOCK:
            break
    order = sorted(range(_BLOCK), key=lambda slot: noise[2 * _BLOCK + 2 * slot : 2 * _BLOCK + 2 * slot + 2])
    mixed = [owners[slot] for slot in order]
    shifts = noise[4 * _BLOCK :]
    counts = dict.fromkeys(mixed, 0)
    entries: list[tuple[int, int]] = []
    for owner in mixed:
        total = mixed.count(owner)
        # a rotation by at least one is never the ascending order
        shift = 1 + shifts[owner % _BLOCK] % (total - 1) if total > 1 else 0
        entries.append((owner, (counts[owner] + shift) % total))
        counts[owner] += 1
    return entries


@cache
def _combinations() -> tuple[_Combination, ...]:
    """Return every choice of facets that the facts above allow."""
    return tuple(
        combination
        for model in MODELS
        for experiment in EXPERIMENTS
        for variable in VARIABLES
        for combination in _combined(model, experiment, variable)
    )


def _combined(model: Model, experiment: Experiment, variable: Variable) -> Iterator[_Combination]:
    """Yield the combinations of these three: none where the model cannot run the experiment or report the variable."""
    resolutions = model.resolutions
    required = experiment.required.split()
    if not all(_NEEDS[source_type] <= resolutions.keys() for source_type in required):
        return
    run = _RUNS[required[0]] & resolutions.keys()
    realm = next((realm for realm in variable.realms.split() if realm in run), None)
    if realm is None:
        return
    optional_types = [source_type for source_type in experiment.optional.split() if _NEEDS[source_type] <= run]
    grid = (model.ocean_grid if realm in _OCEAN else model.grid) + _GRID_SUFFIX.get(variable.table_id, "")
    for activity in experiment.activities.split():
        if activity not in model.activities.split():
            continue
        for institution in model.institutions.split():
            source_types = (*required, *optional_types)
            yield _Combination(
                model, experiment, variable, institution, activity, source_types, resolutions[realm], grid
            )


@lru_cache(maxsize=4)
def _shuffled_combinations(seed: int) -> tuple[_Combination, ...]:
    """Return all combinations in an order of this seed's own."""
    combinations = _combinations()
    # not random.shuffle: its order is no promise of the standard library from one version to the next
    order = sorted(range(len(combinations)), key=lambda index: blake2b(f"{seed}/{index}".encode()).digest())
    return tuple(combinations[index] for index in order)


def _lineage(number: int, combinations: tuple[_Combination, ...], seed: int, versions: int) -> _Lineage:
    """Return lineage `number`; two numbers never give the same combination and member."""
    turn, index = divmod(number, len(combinations))
    combination = combinations[index]
    noise = shake_256(f"{seed}/lineage/{number}".encode()).digest(8)
    sub_experiment_id, variant_label = _member(combination.experiment, turn, index)
    none = sub_experiment_id == "none"
    years = _years(combination.experiment, sub_experiment_id, noise[0])
    files = min(_FILE_COUNTS[noise[1] % 32], 1 + years[1] - years[0])
    return _Lineage(
        combination,
        member_id=variant_label if none else f"{sub_experiment_id}-{variant_label}",
        sub_experiment_id=sub_experiment_id,
        variant_label=variant_label,
        years=years,
        files=1 if combination.variable.frequency == "fx" else files,
        first_day=_FIRST_DAY + int.from_bytes(noise[2:4]) % 1500,
        # however many versions, the newest is less than three years younger than the oldest
        gap=1 + int.from_bytes(noise[4:6]) % (1000 // versions),
        specs=_SPECS[noise[6] % len(_SPECS)],
    )


def _member(experiment: Experiment, turn: int, offset: int) -> tuple[str, str]:
    """Return sub-experiment and variant label: for one offset, another pair at every turn (mixed radix, unbounded)."""
    sub_experiment_id = "none"
    if experiment.starts:
        first, last = experiment.starts
        turn, step = divmod(turn, last - first + 1)
        sub_experiment_id = f"s{first + (step + offset) % (last - first + 1)}"
    turn, realization = divmod(turn, 40)
    turn, forcing = divmod(turn, 3)
    initialization, physics = divmod(turn, 3)
    return sub_experiment_id, f"r{(realization + offset) % 40 + 1}i{initialization + 1}p{physics + 1}f{forcing + 1}"


def _years(experiment: Experiment, sub_experiment_id: str, noise: int) -> tuple[int, int]:
    """Return the first and last year of the simulation, within 1 … 9999."""
    if experiment.starts:
        first = int(sub_experiment_id[1:])
        return first, first + experiment.length
    if experiment.years:
        return experiment.years
    first = min(_ORIGINS[noise % len(_ORIGINS)], _LAST_YEAR + 1 - experiment.length)
    return first, first + experiment.length - 1


def _item(lineage: _Lineage, rank: int, key: str) -> dict[str, object]:
    """Return one version as its publisher would send it; `key` names it among all items of all seeds."""
    combination = lineage.combination
    model, experiment, variable = combination.model, combination.experiment, combination.variable
    noise = shake_256(key.encode()).hexdigest((_ITEM_NOISE + lineage.files * _FILE_NOISE) // 2)
    day = date.fromordinal(lineage.first_day + rank * lineage.gap).isoformat()
    version = day.replace("-", "")
    clock = int(noise[32:36], 16)
    created = f"{day}T{clock % 24:02}:{clock // 24 % 60:02}:{clock // 1440 % 60:02}Z"
    # the DRS in both its spellings (CMIP6 data reference syntax): dots for the id, slashes for the path
    facets = (
        "CMIP6",
        combination.activity,
        combination.institution,
        model.source_id,
        experiment.experiment_id,
        lineage.member_id,
        variable.table_id,
        variable.variable_id,
        combination.grid_label,
    )
    base_id = ".".join(facets)
    item_id = f"{base_id}.v{version}"
    assets, size = _assets(lineage, f"{'/'.join(facets)}/v{version}", created, noise[_ITEM_NOISE:])
    geometry, bbox = _footprint(combination)
    times = _CLOCKS[variable.frequency]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": item_id,
        "collection": "CMIP6",
        "geometry": geometry,
        "bbox": bbox,
        "properties": {
            "datetime": None,
            "start_datetime": f"{lineage.years[0]:04}{times.start}",
            "end_datetime": f"{lineage.years[1]:04}{times.end}",
            "created": created,
            "updated": created,
            "size": size,
            "retracted": False,
            "latest": True,
            "version": version,
            "project": "CMIP6",
            "access": ["HTTPServer", "Globus"],
            "title": base_id,
            "base_id": base_id,
            "cmip6:activity_id": [combination.activity],
            "cmip6:data_specs_version": lineage.specs,
            "cmip6:experiment": experiment.title,
            "cmip6:experiment_id": experiment.experiment_id,
            "cmip6:frequency": variable.frequency,
            "cmip6:grid": "native grid" if combination.grid_label.startswith("gn") else "regridded",
            "cmip6:grid_label": combination.grid_label,
            "cmip6:institution_id": combination.institution,
            "cmip6:member_id": lineage.member_id,
            "cmip6:nominal_resolution": combination.resolution,
            "cmip6:pid": f"hdl:21.14100/{uuid_of_handle(item_id)}",
            "cmip6:product": "model-output",
            "cmip6:realm": variable.realms.split(),
            "cmip6:source_id": model.source_id,
            "cmip6:source_type": list(combination.source_types),
            "cmip6:sub_experiment_id": lineage.sub_experiment_id,
            "cmip6:table_id": variable.table_id,
            "cmip6:variable_cf_standard_name": variable.standard_name,
            "cmip6:variable_id": variable.variable_id,
            "cmip6:variable_long_name": variable.long_name,
            "cmip6:variable_units": variable.units,
            "cmip6:variant_label": lineage.variant_label,
        },
        "links": [
            {
                "rel": "cite-as",
                "type": "application/json",
                "title": "Citation URL",
                "href": f"https://cera-www.dkrz.de/WDCC/meta/CMIP6/{item_id}.json",
            }
        ],
        "assets": assets,
    }


def _assets(lineage: _Lineage, path: str, created: str, noise: str) -> tuple[dict[str, object], int]:
    """Return the files and the Globus link of one version, by asset key, and the files' sizes together in bytes."""
    node = NODES[lineage.combination.institution]
    root = f"https://{node}/thredds/fileServer/css03_data"
    assets: dict[str, object] = {}
    total = 0
    for index, name in enumerate(_file_names(lineage)):
        at = index * _FILE_NOISE
        size = 1_000_000 + int(noise[at + 96 : at + 104], 16) % 1_500_000_000
        total += size
        assets[name] = {
            "href": f"{root}/{path}/{name}",
            "description": "HTTPServer Link",
            "type": "application/netcdf",
            "roles": ["data"],
            "alternate:name": node,
            "node": node,
            "protocol": "https",
            "file:size": size,
            "file:checksum": f"1220{noise[at : at + 64]}",
            "cmip6:tracking_id": f"hdl:21.14100/{_uuid(noise[at + 64 : at + 96])}",
            "created": created,
            "updated": created,
            "file:local_path": f"{path}/{name}",
        }
    assets["globus"] = {
        "href": f"https://app.globus.org/file-manager?origin_id={_globus(node)}&origin_path=/css03_data/{path}/",
        "description": "Globus Web App Link",
        "type": "text/html",
        "roles": ["data"],
        "alternate:name": node,
        "node": node,
        "protocol": "globus",
        "created": created,
        "updated": created,
        "file:local_path": path,
    }
    return assets, total


def _file_names(lineage: _Lineage) -> Iterator[str]:
    """Yield the files in order of time: the years in nearly equal parts, fixed fields without a time range."""
    combination = lineage.combination
    variable = combination.variable
    stem = (
        f"{variable.variable_id}_{variable.table_id}_{combination.model.source_id}"
        f"_{combination.experiment.experiment_id}_{lineage.member_id}_{combination.grid_label}"
    )
    if variable.frequency == "fx":
        yield f"{stem}.nc"
        return
    clock = _CLOCKS[variable.frequency]
    first, last = lineage.years
    years = last + 1 - first
    for index in range(lineage.files):
        begin = first + years * index // lineage.files
        end = first + years * (index + 1) // lineage.files - 1
        yield f"{stem}_{begin:04}{clock.name_start}-{end:04}{clock.name_end}.nc"


def _footprint(combination: _Combination) -> tuple[dict[str, object], list[float]]:
    """Return geometry and bounding box: the globe up to the last point before the antimeridian, or one ice sheet."""
    east = 180.0 - _DEGREES[combination.resolution]
    match combination.grid_label[-1]:
        case "a":
            west, south, north = -180.0, -90.0, -60.0
        case "g":
            west, south, east, north = -75.0, 58.0, -10.0, 84.0
        case _:
            west, south, north = -180.0, -90.0, 90.0
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}, [west, south, east, north]


@cache
def _globus(node: str) -> str:
    """Return the node's Globus endpoint id; there are as many as nodes."""
    return _uuid(shake_256(f"globus/{node}".encode()).hexdigest(16))


def _uuid(digits: str) -> str:
    """Return a version 4 UUID (RFC 9562) from 32 hexadecimal digits, of which two give way to version and variant."""
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:32]}"
