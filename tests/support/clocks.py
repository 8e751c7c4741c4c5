"""A process whose clock is not that of the database."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, tzinfo

import pytest


class _Both(type):
    """What is a moment for one of the two classes is one for the other."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, datetime)


def shift(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Set the clock of this process forward, or back, for all modules of the package that ask `datetime` for it."""

    class OtherClock(datetime, metaclass=_Both):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + by

    for name, module in list(sys.modules.items()):
        if name.startswith("fedstac.") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", OtherClock)
