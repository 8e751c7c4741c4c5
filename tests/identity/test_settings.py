"""What operators configure: taken as a whole, or refused before anything runs, with the variable's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedstac.identity import issuers
from fedstac.settings import Misconfigured
from tests.support.commands import Fedstac

GOOD: dict[str, Any] = {"issuer": "https://idp.example/realms/esgf", "audience": "https://west.example"}
ASKS = {"introspect": True, "client_id": "west", "client_secret": "s3cret"}


def test_issuers_come_as_json_or_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "issuers.json"
    path.write_text(json.dumps([GOOD]))
    assert issuers.issuers_of(str(path), "") == issuers.issuers_of(json.dumps([GOOD]), "")
    [found] = issuers.issuers_of(json.dumps([{"issuer": GOOD["issuer"]}]), "https://default.example")
    assert found.audience == "https://default.example"
    assert issuers.issuers_of("", "") == ()


def test_a_secret_is_not_shown() -> None:
    [found] = issuers.issuers_of(json.dumps([{**GOOD, **ASKS}]), "")
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    "entries",
    [
        [{"issuer": "https://idp.example"}],
        [{**GOOD, "issuer": "http://idp.example"}],
        [{**GOOD, "issuer": "https://idp.example?a=b"}],
        [{**GOOD, "issuer": "https://user:word@idp.example"}],
        [{**GOOD, "issuer": "idp.example"}],
        [{**GOOD, "algorithms": ["HS256"]}],
        [{**GOOD, "algorithms": ["none"]}],
        [{**GOOD, "algorithms": []}],
        [{**GOOD, "introspect": True}],
        [{**GOOD, "verify_tls": False}],
        [GOOD, GOOD],
        [{**GOOD, **ASKS}, {**GOOD, **ASKS, "issuer": "https://other.example"}],
        [5],
        {"issuer": 5},
    ],
    ids=str,
)
def test_what_is_not_safe_is_refused(entries: object) -> None:
    with pytest.raises(Misconfigured, match="FEDSTAC_ISSUERS"):
        issuers.issuers_of(json.dumps(entries), "")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FEDSTAC_ISSUERS", "[{}]"), ("FEDSTAC_ISSUERS", "missing.json"), ("FEDSTAC_GLOBUS_POLICY", "missing.json")],
)
async def test_a_node_that_is_configured_wrongly_does_not_start(fedstac: Fedstac, variable: str, value: str) -> None:
    done = await fedstac("serve", **{variable: value, "FEDSTAC_PORT": "0"})
    assert done.code == 5, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert variable in done.stderr
    assert "Traceback" not in done.stderr
