"""The lines of the access log: some are written at once, each stays whole."""

from __future__ import annotations

import select

from fedstac.api.http.access_log import _pieces


def test_lines_are_written_together_as_far_as_a_pipe_takes_them_whole() -> None:
    lines = [f"{number:04d}" + "x" * (number % 700) for number in range(300)]
    pieces = list(_pieces([*lines, "y" * (2 * select.PIPE_BUF)]))
    assert "\n".join(pieces).split("\n") == [*lines, "y" * (2 * select.PIPE_BUF)]
    assert all(len(piece) < select.PIPE_BUF for piece in pieces[:-1])
    assert len(pieces) < len(lines) / 5
    assert list(_pieces([])) == []


def test_a_pipe_takes_bytes_not_characters() -> None:
    lines = ["ä" * 1000, "b" * 1000, "c" * 1094, "d", "€" * 1000, "e"]
    pieces = list(_pieces(lines))
    assert all(len(piece.encode()) + 1 <= select.PIPE_BUF for piece in pieces)
    assert "\n".join(pieces).split("\n") == lines
