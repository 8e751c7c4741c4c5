"""Which paths of documents files may be stored under."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from fedstac.domain.replication.paths import is_safe_path, parts_of

PARTS = st.sampled_from(("a", "..", ".", "", "ä b", "\\", "..a", "\x00", "\n", ".fedstac-part", "x" * 256, "%2e%2e"))


@given(st.one_of(st.lists(PARTS, max_size=6).map("/".join), st.text(max_size=40)))
def test_a_safe_path_stays_below_the_folder_and_is_what_it_says(path: str) -> None:
    if is_safe_path(path):
        joined = os.path.normpath(os.path.join("/srv/data", path))
        assert joined == f"/srv/data/{path}"
        assert "/".join(parts_of(path)) == path
