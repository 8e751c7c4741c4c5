"""Who gets the next transfer: sources, priorities and datasets, as a table."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstac.domain.replication.sharing import QueuedDataset, batches_of, free_transfers, share_out


@pytest.mark.parametrize(
    ("most", "own", "everywhere", "caps", "free"),
    [
        (8, {}, {}, {"a": None}, {"a": 8}),  # the only source of the policy gets all
        (8, {}, {}, {"a": None, "b": None}, {"a": 6, "b": 6}),  # of several, none gets the last two
        (8, {"a": 6}, {"a": 6}, {"a": None, "b": None}, {"b": 2}),
        (8, {"a": 1}, {"a": 3}, {"a": 4, "b": None}, {"a": 1, "b": 6}),  # the cap counts all processes
        (8, {"a": 1}, {"a": 9}, {"a": 4, "b": None}, {"b": 6}),
        (1, {}, {}, {"a": None, "b": None}, {"a": 1, "b": 1}),  # one transfer is for everybody
        (2, {"a": 1}, {"a": 1}, {"a": None, "b": None}, {"b": 1}),
        (2, {"a": 1, "b": 1}, {"a": 1, "b": 1}, {"a": None, "b": None}, {}),
        (8, {}, {}, {}, {}),
    ],
)
def test_what_a_source_has_free(
    most: int, own: dict[str, int], everywhere: dict[str, int], caps: dict[str, int | None], free: dict[str, int]
) -> None:
    assert free_transfers(most, own, everywhere, caps, {}) == free


def test_a_place_that_comes_free_is_for_the_source_with_the_fewest_transfers() -> None:
    """The first two stall, and keep what they have for hours."""
    caps = {"a": None, "b": None, "c": None}
    candidates = [QueuedDataset(n, source, 0, 9) for n, source in enumerate("abc")]
    assert share_out(1, free_transfers(4, {"a": 2, "b": 1}, {}, caps, {}), candidates) == {2: 1}
    turns = {"a": 3.0, "b": 1.0, "c": 2.0}
    assert share_out(1, free_transfers(4, {}, {}, caps, turns), candidates) == {1: 1}  # its turn was longest ago


@pytest.mark.parametrize(
    ("room", "free", "candidates", "counts"),
    [
        (4, {"a": 4}, [(1, "a", 0, 50), (2, "a", 0, 1), (3, "a", 0, 1)], {1: 2, 2: 1, 3: 1}),  # a large one and two
        (2, {"a": 4}, [(1, "a", 0, 50), (2, "a", 0, 1), (3, "a", 0, 1)], {1: 1, 2: 1}),  # whose turn was longest ago
        (3, {"a": 4}, [(2, "a", 5, 2), (1, "a", 0, 50)], {2: 2, 1: 1}),  # priority first, then what is left
        (4, {"slow": 4, "quick": 4}, [(1, "slow", 0, 9), (2, "quick", 0, 9)], {1: 2, 2: 2}),  # sources take turns
        (4, {"slow": 1, "quick": 4}, [(1, "slow", 9, 9), (2, "quick", 0, 9)], {1: 1, 2: 3}),
        (0, {"a": 4}, [(1, "a", 0, 1)], {}),
        (4, {}, [(1, "a", 0, 1)], {}),
        (4, {"a": 4}, [], {}),
    ],
)
def test_who_gets_a_transfer(
    room: int, free: dict[str, int], candidates: list[tuple[int, str, int, int]], counts: dict[int, int]
) -> None:
    assert share_out(room, free, [QueuedDataset(*each) for each in candidates]) == counts


CANDIDATES = st.lists(
    st.builds(QueuedDataset, st.integers(1, 10_000), st.sampled_from("abc"), st.integers(0, 2), st.integers(1, 60)),
    unique_by=lambda each: each.n, max_size=12,
)  # fmt: skip


@given(st.integers(0, 16), st.dictionaries(st.sampled_from("abc"), st.integers(1, 8)), CANDIDATES)
def test_nobody_gets_more_than_there_is_and_nothing_stays_free_that_somebody_wants(
    room: int, free: dict[str, int], candidates: list[QueuedDataset]
) -> None:
    counts = share_out(room, free, candidates)
    of_source: Counter[str] = Counter()
    for each in candidates:
        assert counts.get(each.n, 0) <= each.batches
        of_source[each.source] += counts.get(each.n, 0)
    assert all(of_source[source] <= free.get(source, 0) for source in of_source)
    wanted = sum(min(free[s], sum(each.batches for each in candidates if each.source == s)) for s in free)
    assert sum(counts.values()) == min(room, wanted)


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([], []),
        ([5], [range(1)]),
        ([900], [range(1)]),  # larger than a batch
        ([5, 900, 5], [range(1), range(1, 2), range(2, 3)]),
        ([40, 40, 40], [range(2), range(2, 3)]),
        ([1, 1, 1, 1, 1], [range(4), range(4, 5)]),
    ],
)
def test_files_in_batches(sizes: list[int], batches: list[range]) -> None:
    assert batches_of(sizes, files=4, most_bytes=100) == batches
