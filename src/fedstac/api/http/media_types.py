"""Which form of an answer a client would like: the weights of media types in Accept (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers

QUALITY: Final = re.compile(r"[01](\.[0-9]{0,3})?")
ANYTHING: Final = "*/*"


class Accept:
    """What the header Accept says; without the header every weight is 0."""

    def __init__(self, headers: Headers) -> None:
        self._weights: dict[str, float] = {}
        for part in headers.get("accept", "").lower().split(","):
            media_type, *parameters = (text.strip() for text in part.split(";"))
            texts = [each.removeprefix("q=") for each in parameters if each.startswith("q=")]
            self._weights[media_type] = float(texts[0]) if texts and QUALITY.fullmatch(texts[0]) else 1.0

    def own_weight(self, media_type: str) -> float:
        """Return the weight of a media type that is named itself; 0 where only a range such as `*/*` has it."""
        return self._weights.get(media_type, 0.0)

    def weight(self, media_type: str) -> float:
        """Return the weight of a media type: its own, else that of the narrowest range that has it."""
        own_range = media_type.partition("/")[0] + "/*"
        return next((self._weights[each] for each in (media_type, own_range, ANYTHING) if each in self._weights), 0.0)

    def asks_for(self, media_type: str, *, instead_of: Sequence[str]) -> bool:
        """Return whether the client names a form, and likes none of the usual ones better."""
        own = self.own_weight(media_type)
        return own > 0 and all(own >= self.weight(usual) for usual in instead_of)
