"""What a process depends on, and whether it fails just now: one log line when that begins, and one when it ends."""

from __future__ import annotations

import time

import structlog

LONGEST_REASON = 500  # characters
QUIET_SECONDS = 3.0  # without a failure, after which an outage may be over

log = structlog.get_logger()


class Outage:
    """Whether something fails just now, whoever of the process noticed it first.

    what: the words for it in the log, such as "the database".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._last = 0.0
        self._failures = 0

    @property
    def is_on(self) -> bool:
        return self._failures > 0

    @property
    def may_be_over(self) -> bool:
        """Whether it has been quiet for long enough to look whether the outage is over."""
        return self.is_on and time.monotonic() - self._last > QUIET_SECONDS

    def failed(self, error: BaseException) -> None:
        """Count a failure, and log the first one."""
        self._last = time.monotonic()
        if not self.is_on:
            self._began = self._last
            log.warning(
                f"{self._what} is away or overloaded; what needs it waits, or is refused", reason=reason_of(error)
            )
        self._failures += 1

    def ended(self) -> None:
        """Log that it works again, if it did not."""
        if self.is_on:
            seconds = round(time.monotonic() - self._began, 1)
            log.info(f"{self._what} is back", seconds=seconds, failures=self._failures)
        self._failures = 0


def reason_of(error: BaseException) -> str:
    """Return an error in one line, for the log: its class, its SQLSTATE and its text. Not for callers."""
    text = " ".join(str(error).split())[:LONGEST_REASON]
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__}{f' ({state})' if state else ''}: {text}"
