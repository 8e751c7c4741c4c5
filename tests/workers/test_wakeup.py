"""How long a part waits before it looks again."""

from __future__ import annotations

from fedstac.runtime.wakeup import Backoff


def test_what_comes_back_is_found_after_a_tenth_of_the_time_that_it_was_away() -> None:
    backoff, waited = Backoff(least=0.2, most=10.0, growth=1.1), 0.0
    while waited < 90:
        pause = backoff.pause()
        assert pause <= 0.2 + waited / 10 + 1e-9
        waited += pause
    assert [backoff.pause() for _ in range(10)][-1] == 10.0
    backoff.reset()
    assert backoff.pause() == 0.2
