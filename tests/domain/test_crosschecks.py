"""Datasets beside each other: versions that cover less, files that are in two of them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fedstac.domain import crosschecks
from fedstac.domain.crosschecks import Batch, Version

Json = dict[str, Any]


def version(number: int, start: str, end: str) -> Version:
    return Version(f"a.v{number}", number, f"{start}T00:00:00Z", f"{end}T00:00:00Z")


OLD = version(20180912, "1850-01-01", "1853-01-01")


@pytest.mark.parametrize(
    ("start", "end", "is_less"),
    [
        ("1850-01-01", "1853-01-01", False),
        ("1849-01-01", "1860-01-01", False),
        ("1850-01-16", "1852-12-16", False),  # months named by their middles
        ("1853-01-01", "1853-12-31", True),
        ("1850-01-01", "1852-12-01", True),  # a month less
        ("1850-02-01", "1900-01-01", True),
        ("1900-01-01", "1999-01-01", True),
    ],
)
def test_a_newer_version_may_not_cover_less(start: str, end: str, is_less: bool) -> None:
    new = version(20180913, start, end)
    for finding in (crosschecks.coverage(new, OLD), crosschecks.coverage(OLD, new)):
        assert (finding is not None) is is_less
        if finding:
            assert (finding.rule, finding.severity) == ("coverage", "warning")
            for part in (OLD.id, OLD.start, OLD.end, new.id, new.start, new.end):
                assert part in finding.message


def test_of_a_short_time_a_tenth_may_be_missing() -> None:
    day = version(1, "2000-01-01", "2000-01-11")
    assert crosschecks.coverage(day, version(2, "2000-01-02", "2000-01-10")) is None
    assert crosschecks.coverage(day, version(2, "2000-01-03", "2000-01-10")) is not None


def test_what_is_no_time_is_told_elsewhere() -> None:
    assert crosschecks.coverage(OLD, Version("a.v2", 20200101, "soon", "later")) is None


def document(*files: tuple[str, str], start: str = "2000-01-01T00:00:00Z", end: str = "2001-01-01T00:00:00Z") -> str:
    assets = {
        f"{n}.nc": {"href": "x", "file:checksum": checksum, "cmip6:tracking_id": tracking}
        for n, (checksum, tracking) in enumerate(files)
    }
    times = {"datetime": None, "start_datetime": start, "end_datetime": end}
    return orjson.dumps({"assets": assets, "properties": times}).decode()


ONE, TWO, THREE = ("1220aa", "hdl:1"), ("1220bb", "hdl:2"), ("1220cc", "hdl:3")


def compared(*datasets: tuple[str, str, int | None, str]) -> list[list[str]]:
    """Return the rules that warn of each dataset (id, lineage, version, document)."""
    batch = Batch()
    return [
        [finding.rule for finding in batch.compare(text, id, lineage, number)] for id, lineage, number, text in datasets
    ]


def test_the_same_files_under_two_names_are_named_once() -> None:
    batch = Batch()
    assert list(batch.compare(document(ONE, TWO), "a.v1", "a", 1)) == []
    [finding] = batch.compare(document(TWO, ONE), "b.v1", "b", 1)
    assert finding.rule == "same-files"
    assert "a.v1 has the same files" in finding.message


def test_the_same_content_with_other_tracking_ids_is_the_same_files() -> None:
    again = document(("1220aa", "hdl:7"), ("1220bb", "hdl:8"))
    assert compared(("a.v1", "a", 1, document(ONE, TWO)), ("b.v1", "b", 1, again)) == [[], ["same-files"]]


def test_a_tracking_id_in_two_datasets_is_named() -> None:
    batch = Batch()
    list(batch.compare(document(ONE, TWO), "a.v1", "a", 1))
    [finding] = batch.compare(document(TWO, THREE), "b.v1", "b", 1)
    assert finding.rule == "shared-tracking-id"
    assert finding.message == "the tracking id hdl:2 is also that of a file of a.v1"


def test_versions_of_one_dataset_may_share_files() -> None:
    assert compared(("a.v1", "a", 1, document(ONE)), ("a.v2", "a", 2, document(ONE, TWO))) == [[], []]


def test_versions_are_compared_with_their_neighbours_in_any_order() -> None:
    short = document(end="2000-06-01T00:00:00Z")
    assert compared(("a.v2", "a", 2, short), ("a.v1", "a", 1, document()), ("a.v3", "a", 3, document())) == [
        [],
        ["coverage"],
        [],
    ]


def test_a_dataset_without_files_or_versions_is_like_no_other() -> None:
    assert crosschecks.marks(document()) == {}
    assert compared(("a", "a", None, document()), ("b", "b", None, document())) == [[], []]


def test_a_batch_remembers_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crosschecks, "MOST_MARKS", 3)
    assert compared(
        ("a", "a", None, document(ONE)), ("b", "b", None, document(TWO)), ("c", "c", None, document(TWO)),
        ("d", "d", None, document(ONE)),
    ) == [[], [], [], ["same-files"]]  # fmt: skip
