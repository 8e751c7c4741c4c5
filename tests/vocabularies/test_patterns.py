"""Regular expressions from elsewhere: spelled out, anchored, and never such that an engine that back-tracks hangs."""

from __future__ import annotations

import re
import time

import pytest

from fedstac.vocabularies.facts import check_pattern, either
from fedstac.vocabularies.sources import VocabularyRefused

KEPT = {
    r"^r\d+$": "^r[0-9]+$",
    r"\d+$": "^[0-9]+$",
    r"a|b": "^(?:a|b)$",
    r"^[\d-]+$": "^[0-9-]+$",
    r"^r\d+i(\d{4}\d{2}[abcde]?|\d+)p\d+f\d+$": "^r[0-9]+i([0-9]{4}[0-9]{2}[abcde]?|[0-9]+)p[0-9]+f[0-9]+$",
    r"^days since [0-9]{4}( [0-9]{1,2}(:[0-9]+(\.[0-9]+)?)?)?$": None,
    r"^https?://errata.esgf.io/.*$": None,
    r"^\(a\)\[b\]$": None,
    r"^a\$$": None,
    r"^(?:ab){3}$": None,
}
REFUSED = {
    r"^(a+)+$": "repeats a repetition",
    r"^(a*)*b$": "repeats a repetition",
    r"^((ab)*c)*$": "repeats a repetition",
    r"^(a|a)*$": "alternatives without end",
    r"^([a-z]+){5}$": "repeats a repetition",
    r"^(x+x+)+y$": "side by side|repeats a repetition",
    r"^\d+\d+$": "side by side",
    r"^.*.*$": "side by side",
    r"^.*a.*b.*c.*$": "more than 3 times",
    r"^(a|a){30}$": "more than 50000 ways",
    r"^((a|a){5}){5}$": "more than 50000 ways",
    r"^(a?){30}a{30}$": "more than 50000 ways",
    r"^(a{1,3}){30}$": "more than 50000 ways",
    "^" + "a?" * 30 + "a" * 30 + "$": "more than 50000 ways",
    "^" + "a?b?" * 15 + "$": "more than 50000 ways",
    r"^(a{100}){100}$": "counts to more",
    r"^a{5000}$": "counts to more",
    r"^(?=a)b$": "looks around",
    r"^(?!a)b$": "looks around",
    r"^(?<=a)b$": "looks around",
    r"^(a)\1$": r"uses \\1",
    r"^\p{L}$": r"uses \\p",
    r"^a$b$": "anchor within",
    r"^(a": "open",
    r"^a)$": "not open",
    r"^*a$": "repeats nothing",
    r"^[z-a]$": "regular expression",
    "^" + "a" * 2000 + "$": "1000 characters",
}


@pytest.mark.parametrize("text", KEPT)
def test_what_is_harmless_is_kept(text: str) -> None:
    assert check_pattern(text, "here") == (KEPT[text] or text)


@pytest.mark.parametrize("text", REFUSED)
def test_what_could_run_away_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(VocabularyRefused, match=REFUSED[text]):
        check_pattern(text, "here")


@pytest.mark.parametrize("text", KEPT)
def test_an_engine_that_back_tracks_is_done_with_it_soon(text: str) -> None:
    """Python's: on long values that nearly fit."""
    made = re.compile(check_pattern(text, "here"))
    began = time.process_time()
    for piece in ("a", "1", "ab", "r1", "/", "https://errata.esgf.io/"):
        made.match(piece * 2000 + "\n!")
    assert time.process_time() - began < 10, "an engine that runs away takes minutes"


def test_patterns_are_joined() -> None:
    assert either(["^a$"]) == "^a$"
    assert either(["^a$", "^b|c$"]) == "^(?:a|b|c)$"
