"""What verification says of a file, an entry and a whole disk."""

from __future__ import annotations

import pytest

from fedstac.domain.replication import verification
from fedstac.domain.replication.verification import DiskFile, FileFault, RecordedFile, VerificationCounts

RECORDED = RecordedFile(10, "1220aa")


@pytest.mark.parametrize(
    ("disk", "fault"),
    [
        (DiskFile(10, "1220aa"), None),
        (DiskFile(10), None),  # by size: nobody read the bytes
        (None, FileFault.MISSING),
        (DiskFile(9, "1220bb"), FileFault.TRUNCATED),
        (DiskFile(0), FileFault.TRUNCATED),
        (DiskFile(11), FileFault.WRONG),
        (DiskFile(10, "1220bb"), FileFault.WRONG),
        (DiskFile(10, None, "it cannot be read: Input/output error"), FileFault.UNREADABLE),
    ],
)
def test_a_file_is_what_its_record_says_or_has_one_fault(disk: DiskFile | None, fault: FileFault | None) -> None:
    verdict = verification.judge_file(RECORDED, disk)
    assert (verdict.fault if verdict else None) == fault


def test_a_record_without_size_and_checksum_asks_only_that_the_file_is_there() -> None:
    assert verification.judge_file(RecordedFile(None, None), DiskFile(3, "1220aa")) is None
    assert verification.judge_file(RecordedFile(None, None), None) is not None


HERE, ELSEWHERE = "https://east.example/data/psl.nc", "https://east.example/old/psl.nc"


@pytest.mark.parametrize(
    ("href", "expected_href", "fault"),
    [
        (HERE, HERE, None),
        (None, None, None),
        (HERE, None, FileFault.WRONGLY_ANNOUNCED),
        (ELSEWHERE, HERE, FileFault.WRONGLY_ANNOUNCED),
        (None, HERE, FileFault.NOT_ANNOUNCED),
    ],
)
def test_an_entry_is_compared_with_what_was_announced(
    href: str | None, expected_href: str | None, fault: FileFault | None
) -> None:
    verdict = verification.judge_entry(href, expected_href)
    assert (verdict.fault if verdict else None) == fault


@pytest.mark.parametrize(
    ("faults", "stops"),
    [
        ({}, False),
        ({"missing": 10}, False),  # 1 % is not over 1 %
        ({"missing": 11}, True),
        ({"dark": 20}, False),
        ({"dark": 21}, True),
        ({"missing": 3, "truncated": 3, "wrong": 2, "unreadable": 2}, False),
        ({"missing": 3, "truncated": 3, "wrong": 2, "unreadable": 3}, True),
        ({"wrong": 11}, True),
    ],
)
def test_dark_or_bad_files_over_the_limit_stop_the_repair(faults: dict[str, int], stops: bool) -> None:
    reason = verification.brake(VerificationCounts(recorded=1000, on_disk=2000, faults=faults), 1.0)
    assert (reason is not None) == stops


def test_the_brake_says_what_is_too_much() -> None:
    counts = VerificationCounts(recorded=200, on_disk=0, faults={"missing": 200})
    assert verification.brake(counts, 1) == (
        "200 of 200 files that should be here are missing, 100.0 %, and the limit is 1 %"
    )
    counts = VerificationCounts(recorded=200, on_disk=0, faults={"missing": 2, "unreadable": 1})
    assert verification.brake(counts, 1) == (
        "3 of 200 files that should be here are missing or unreadable, 1.5 %, and the limit is 1 %"
    )


def test_a_dark_file_is_old_enough_after_whole_days() -> None:
    assert not verification.is_old_enough(28 * 86_400 - 1, 28)
    assert verification.is_old_enough(28 * 86_400, 28)
