"""What the answers of a subscription's webhook mean, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from fedstac.domain.webhook_answers import (
    Consent,
    WebhookAnswer,
    WebhookOutcome,
    WebhookVerdict,
    consent_of,
    outcome_of,
    retry_after,
)

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
HALF_PAST = "Sun, 29 Nov 2026 12:30:00 GMT"


@pytest.mark.parametrize(("status", "headers", "body", "verdict", "seconds"), [
    (200, {}, b"", WebhookVerdict.TAKEN, None),
    (204, {}, b"", WebhookVerdict.TAKEN, None),
    (202, {"retry-after": "5"}, b"", WebhookVerdict.TAKEN, None),
    (200, {}, b'{"status": "SUCCESS"}', WebhookVerdict.TAKEN, None),
    (200, {}, b'{"status": "RETRY"}', WebhookVerdict.AGAIN, None),
    (200, {"retry-after": "7"}, b' {"status":"retry"}', WebhookVerdict.AGAIN, 7.0),
    (200, {}, b'{"status": "DROP"}', WebhookVerdict.DROPPED, None),
    (200, {}, b'{"status": "ok", "of": "somebody"}', WebhookVerdict.TAKEN, None),
    (200, {}, b'{"status": 3}', WebhookVerdict.TAKEN, None),
    (200, {}, b'{"status": "RETRY"', WebhookVerdict.TAKEN, None),
    (200, {}, b'["RETRY"]', WebhookVerdict.TAKEN, None),
    (200, {}, b"<html>RETRY</html>", WebhookVerdict.TAKEN, None),
    (410, {}, b"", WebhookVerdict.ENDED, None),
    (301, {}, b"", WebhookVerdict.REFUSED, None),
    (307, {"location": "http://169.254.169.254/"}, b"", WebhookVerdict.REFUSED, None),
    (401, {}, b"", WebhookVerdict.REFUSED, None),
    (403, {}, b'{"status": "SUCCESS"}', WebhookVerdict.REFUSED, None),
    (429, {"retry-after": "12"}, b"", WebhookVerdict.BUSY, 12.0),
    (429, {}, b"", WebhookVerdict.BUSY, None),
    (503, {"retry-after": HALF_PAST}, b"", WebhookVerdict.BUSY, 1800.0),
    (502, {}, b"", WebhookVerdict.BUSY, None),
    (400, {}, b"", WebhookVerdict.AGAIN, None),
    (413, {}, b"", WebhookVerdict.AGAIN, None),
    (422, {}, b'{"status": "DROP"}', WebhookVerdict.AGAIN, None),
    (500, {}, b"", WebhookVerdict.UNCLEAR, None),
    (418, {}, b"", WebhookVerdict.UNCLEAR, None),
])  # fmt: skip
def test_what_an_answer_means(
    status: int, headers: Mapping[str, str], body: bytes, verdict: WebhookVerdict, seconds: float | None
) -> None:
    outcome = outcome_of(WebhookAnswer(status, headers, body), NOW)
    assert (outcome.verdict, outcome.seconds) == (verdict, seconds)
    assert bool(outcome.reason) == (verdict is not WebhookVerdict.TAKEN)


@pytest.mark.parametrize(("text", "seconds"), [
    (None, None), ("0", 0.0), (" 30 ", 30.0), ("99999999999999", 3600.0), ("1.5", None), ("-1", None), ("soon", None),
    ("٣", None), (HALF_PAST, 1800.0), ("Sun, 29 Nov 2026 11:30:00 GMT", 0.0), ("Sun, 29 Nov 2026 12:00:09", 9.0),
    ("Sun, 29 Nov 2099 12:00:00 GMT", 3600.0), ("", None),
    ("Sun, 29 Nov 2026 12:00:00 +9999999999999999", None),
])  # fmt: skip
def test_how_long_a_receiver_wants_to_be_left_in_peace(text: str | None, seconds: float | None) -> None:
    assert retry_after(text, NOW) == seconds


@pytest.mark.parametrize(("status", "headers", "wanted"), [
    (200, {"webhook-allowed-origin": "*"}, None),
    (204, {"webhook-allowed-origin": "west.example", "webhook-allowed-rate": "*"}, None),
    (200, {"webhook-allowed-origin": "WEST.example", "webhook-allowed-rate": "120"}, 120),
    (200, {"webhook-allowed-origin": "*", "webhook-allowed-rate": "0"}, 1),
    (200, {"webhook-allowed-origin": "*", "webhook-allowed-rate": "99999999999"}, 1_000_000),
    (200, {"webhook-allowed-origin": "*", "webhook-allowed-rate": "many"}, None),
    (200, {}, WebhookVerdict.REFUSED),
    (200, {"webhook-allowed-origin": "east.example"}, WebhookVerdict.REFUSED),
    (405, {"webhook-allowed-origin": "*"}, WebhookVerdict.REFUSED),
    (302, {"webhook-allowed-origin": "*"}, WebhookVerdict.REFUSED),
    (404, {}, WebhookVerdict.REFUSED),
    (410, {"webhook-allowed-origin": "*"}, WebhookVerdict.ENDED),
    (429, {"webhook-allowed-origin": "*", "retry-after": "3"}, WebhookVerdict.BUSY),
    (500, {}, WebhookVerdict.BUSY),
])  # fmt: skip
def test_what_the_answer_to_a_handshake_means(
    status: int, headers: Mapping[str, str], wanted: int | WebhookVerdict | None
) -> None:
    consent = consent_of(WebhookAnswer(status, headers), "west.example", NOW)
    if isinstance(wanted, WebhookVerdict):
        assert isinstance(consent, WebhookOutcome)
        assert consent.verdict is wanted
        assert consent.reason
    else:
        assert consent == Consent(wanted)
