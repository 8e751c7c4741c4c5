"""What the answer of a subscription's webhook means. Pure: an answer in, what to do out.

Sources: CloudEvents, HTTP 1.1 Web Hooks for Event Delivery (statuses, Retry-After, 410, the handshake); Dapr, pub/sub
(`{"status": "SUCCESS" | "RETRY" | "DROP"}` in an answer 2xx).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

import orjson

LONGEST_WAIT_SECONDS: Final = 3600.0  # that a receiver may ask for
LONGEST_QUOTED: Final = 80  # characters of what a receiver wrote
ABOUT_THE_EVENT: Final = (400, 404, 406, 409, 411, 412, 413, 415, 422, 431)
BUSY: Final = (429, 502, 503, 504)
REFUSING: Final = (401, 403, 405, 407, 451)
ALLOWED_ORIGIN, ALLOWED_RATE = "webhook-allowed-origin", "webhook-allowed-rate"
EVERY: Final = "*"
LEAST_RATE, MOST_RATE = 1, 1_000_000  # requests a minute


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What a receiver answered. The names of headers are in lower case; the body is the begin of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class WebhookVerdict(StrEnum):
    """What an attempt to send an event came to."""

    TAKEN = "taken"
    DROPPED = "dropped"  # the receiver does not want it: it is not sent again
    UNWRITABLE = "unwritable"  # its format cannot write the event, now or later; nothing was sent
    AGAIN = "again"  # the event failed; others may pass it
    UNCLEAR = "unclear"  # the event or the receiver fails: what becomes of other events tells
    BUSY = "busy"  # the receiver takes nothing for a while
    REFUSED = "refused"  # the receiver refuses this node: somebody has to see to it
    ENDED = "ended"  # the receiver wants nothing any more


@dataclass(frozen=True, slots=True)
class WebhookOutcome:
    """A verdict, its reason for people, and how many seconds the receiver wants to be left in peace, if it says so."""

    verdict: WebhookVerdict
    reason: str = ""
    seconds: float | None = None


TAKEN: Final = WebhookOutcome(WebhookVerdict.TAKEN)


def outcome_of(answer: WebhookAnswer, now: datetime) -> WebhookOutcome:
    """Return what an answer to an event means."""
    seconds = retry_after(answer.headers.get("retry-after"), now)
    if answer.is_success:
        match _status_in(answer.body):
            case "RETRY":
                return WebhookOutcome(WebhookVerdict.AGAIN, "the receiver answered RETRY", seconds)
            case "DROP":
                return WebhookOutcome(WebhookVerdict.DROPPED, "the receiver answered DROP")
            case _:
                return TAKEN
    reason = f"the receiver answered {answer.status}"
    if answer.status == 410:
        return WebhookOutcome(WebhookVerdict.ENDED, f"{reason}: it wants no more events")
    if 300 <= answer.status < 400:
        return WebhookOutcome(
            WebhookVerdict.REFUSED, f"{reason}: redirects are not followed; put the address that it leads to"
        )
    if answer.status in REFUSING:
        return WebhookOutcome(
            WebhookVerdict.REFUSED, f"{reason}: see that it takes what this node signs, and put it again"
        )
    if answer.status in BUSY:
        return WebhookOutcome(WebhookVerdict.BUSY, reason, seconds)
    verdict = WebhookVerdict.AGAIN if answer.status in ABOUT_THE_EVENT else WebhookVerdict.UNCLEAR
    return WebhookOutcome(verdict, reason, seconds)


def _status_in(body: bytes) -> str | None:
    """Return the member `status` of a body; None where there is none."""
    if not body.lstrip().startswith(b"{"):
        return None
    try:
        answer = orjson.loads(body)
    except ValueError:
        return None
    status = answer.get("status")
    return status.upper() if isinstance(status, str) else None


def retry_after(text: str | None, now: datetime) -> float | None:
    """Return the seconds of a header Retry-After (RFC 9110, 10.2.3), an hour at most; None where it says nothing."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:9]), LONGEST_WAIT_SECONDS)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), LONGEST_WAIT_SECONDS)


# --- the handshake ---


@dataclass(frozen=True, slots=True)
class Consent:
    """A receiver agreed to get events. rate: at most so many requests a minute; None: any number."""

    rate: int | None


def consent_of(answer: WebhookAnswer, origin: str, now: datetime) -> Consent | WebhookOutcome:
    """Return what the answer to OPTIONS means: consent, or why there is none (verdicts BUSY, REFUSED, ENDED)."""
    if answer.status == 410:
        return outcome_of(answer, now)
    if answer.status == 429 or answer.status >= 500:
        reason = f"the receiver answered {answer.status} to OPTIONS"
        return WebhookOutcome(WebhookVerdict.BUSY, reason, retry_after(answer.headers.get("retry-after"), now))
    allowed_origin = answer.headers.get(ALLOWED_ORIGIN, "").strip()
    if not answer.is_success or allowed_origin.lower() not in (EVERY, origin.lower()):
        return WebhookOutcome(
            WebhookVerdict.REFUSED,
            f"the receiver did not agree to get events: it has to answer OPTIONS with 2xx and the header "
            f"WebHook-Allowed-Origin: {origin} (or *); it answered {answer.status}"
            + (f" and {allowed_origin[:LONGEST_QUOTED]!r}" if allowed_origin else " without it"),
        )
    return Consent(_rate(answer.headers.get(ALLOWED_RATE, EVERY).strip()))


def _rate(text: str) -> int | None:
    """Return the requests a minute of WebHook-Allowed-Rate; None where it sets no bound."""
    if not (text.isascii() and text.isdecimal()):
        return None
    return min(max(int(text[:9]), LEAST_RATE), MOST_RATE)
