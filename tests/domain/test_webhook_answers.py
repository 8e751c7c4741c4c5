"""What the answers of a subscription's webhook mean, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from fedstac.domain.webhook_answers import Answer, Consent, Outcome, Verdict, consent_of, outcome_of, retry_after

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
HALF_PAST = "Sun, 29 Nov 2026 12:30:00 GMT"


@pytest.mark.parametrize(("status", "headers", "body", "verdict", "seconds"), [
    (200, {}, b"", Verdict.TAKEN, None),
    (204, {}, b"", Verdict.TAKEN, None),
    (202, {"retry-after": "5"}, b"", Verdict.TAKEN, None),
    (200, {}, b'{"status": "SUCCESS"}', Verdict.TAKEN, None),
    (200, {}, b'{"status": "RETRY"}', Verdict.AGAIN, None),
    (200, {"retry-after": "7"}, b' {"status":"retry"}', Verdict.AGAIN, 7.0),
    (200, {}, b'{"status": "DROP"}', Verdict.DROPPED, None),
    (200, {}, b'{"status": "ok", "of": "somebody"}', Verdict.TAKEN, None),
    (200, {}, b'{"status": 3}', Verdict.TAKEN, None),
    (200, {}, b'{"status": "RETRY"', Verdict.TAKEN, None),
    (200, {}, b'["RETRY"]', Verdict.TAKEN, None),
    (200, {}, b"<html>RETRY</html>", Verdict.TAKEN, None),
    (410, {}, b"", Verdict.ENDED, None),
    (301, {}, b"", Verdict.REFUSED, None),
    (307, {"location": "http://169.254.169.254/"}, b"", Verdict.REFUSED, None),
    (401, {}, b"", Verdict.REFUSED, None),
    (403, {}, b'{"status": "SUCCESS"}', Verdict.REFUSED, None),
    (429, {"retry-after": "12"}, b"", Verdict.BUSY, 12.0),
    (429, {}, b"", Verdict.BUSY, None),
    (503, {"retry-after": HALF_PAST}, b"", Verdict.BUSY, 1800.0),
    (502, {}, b"", Verdict.BUSY, None),
    (400, {}, b"", Verdict.AGAIN, None),
    (413, {}, b"", Verdict.AGAIN, None),
    (422, {}, b'{"status": "DROP"}', Verdict.AGAIN, None),
    (500, {}, b"", Verdict.UNCLEAR, None),
    (418, {}, b"", Verdict.UNCLEAR, None),
])  # fmt: skip
def test_what_an_answer_means(
    status: int, headers: Mapping[str, str], body: bytes, verdict: Verdict, seconds: float | None
) -> None:
    outcome = outcome_of(Answer(status, headers, body), NOW)
    assert (outcome.verdict, outcome.seconds) == (verdict, seconds)
    assert bool(outcome.reason) == (verdict is not Verdict.TAKEN)


@pytest.mark.parametrize(("text", "seconds"), [
    (None, None), ("0", 0.0), (" 30 ", 30.0), ("99999999999999", 3600.0), ("1.5", None), ("-1", None), ("soon", None),
    ("٣", None), (HALF_PAST, 1800.0), ("Sun, 29 Nov 2026 11:30:00 GMT", 0.0), ("Sun, 29 Nov 2026 12:00:09", 9.0),
    ("Sun, 29 Nov 2099 12:00:00 GMT", 3600.0), ("", None),
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
    (200, {}, Verdict.REFUSED),
    (200, {"webhook-allowed-origin": "east.example"}, Verdict.REFUSED),
    (405, {"webhook-allowed-origin": "*"}, Verdict.REFUSED),
    (302, {"webhook-allowed-origin": "*"}, Verdict.REFUSED),
    (404, {}, Verdict.REFUSED),
    (410, {"webhook-allowed-origin": "*"}, Verdict.ENDED),
    (429, {"webhook-allowed-origin": "*", "retry-after": "3"}, Verdict.BUSY),
    (500, {}, Verdict.BUSY),
])  # fmt: skip
def test_what_the_answer_to_a_handshake_means(
    status: int, headers: Mapping[str, str], wanted: int | Verdict | None
) -> None:
    consent = consent_of(Answer(status, headers), "west.example", NOW)
    if isinstance(wanted, Verdict):
        assert isinstance(consent, Outcome)
        assert consent.verdict is wanted
        assert consent.reason
    else:
        assert consent == Consent(wanted)
