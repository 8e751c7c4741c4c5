"""What becomes of a file that was not copied: who is asked next, when, and whether it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, assert_never

from fedstac.replication.transports import CopyCause

MOST_ATTEMPTS: Final = 12  # that count, after which a file has failed
CUTS_AT_A_SOURCE: Final = 3  # in a row and without a byte, after which another source is asked
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds before the same source is asked again
SOURCE_PAUSE, LONGEST_SOURCE_PAUSE = 300.0, 6 * 3600.0  # seconds for which a source is not asked for the file
BUSY_PAUSE: Final = 5.0
DISK_PAUSE: Final = 60.0


@dataclass(frozen=True, slots=True)
class NextStep:
    """What follows from a failed attempt.

    counts: it is one of the attempts that a file has. fails: the file has failed, whoever is asked. pause: seconds
    before its next attempt. source_pause: seconds for which this source is not asked for the file; infinite: never
    again; 0: it may be asked. source_is_away: no file of it can be had now. is_wrong: the source has another content,
    which its operators should know. disk: the whole dataset waits for the disk.
    """

    counts: bool = True
    fails: bool = False
    pause: float = 0.0
    source_pause: float = 0.0
    source_is_away: bool = False
    is_wrong: bool = False
    disk: bool = False


def next_step(cause: CopyCause, attempts: int, *, retry_after: float | None = None) -> NextStep:
    """Return what follows. `attempts`: those that count, in a row, before this one and without a byte of progress."""
    count = attempts + 1
    source_pause = min(SOURCE_PAUSE * 2.0 ** min(attempts, 20), LONGEST_SOURCE_PAUSE)
    fails = count >= MOST_ATTEMPTS
    match cause:
        case CopyCause.SOURCE_AWAY:
            return NextStep(counts=False, source_is_away=True, pause=retry_after or 0.0)
        case CopyCause.SOURCE_REFUSES | CopyCause.CHANGED:
            return NextStep(fails=fails, source_pause=source_pause)
        case CopyCause.CUT:
            if count % CUTS_AT_A_SOURCE == 0:
                return NextStep(fails=fails, source_pause=source_pause)
            return NextStep(fails=fails, pause=min(FIRST_PAUSE * 2.0 ** min(attempts, 20), LONGEST_PAUSE))
        case CopyCause.WRONG_CONTENT:
            return NextStep(source_pause=float("inf"), is_wrong=True)
        case CopyCause.BAD_ADDRESS:
            return NextStep(source_pause=float("inf"))
        case CopyCause.BAD_PATH | CopyCause.UNVERIFIABLE:
            return NextStep(fails=True)
        case CopyCause.DISK_FULL | CopyCause.DISK_BROKEN:
            return NextStep(counts=False, disk=True, pause=DISK_PAUSE)
        case CopyCause.BUSY:
            return NextStep(counts=False, pause=BUSY_PAUSE)
    assert_never(cause)
