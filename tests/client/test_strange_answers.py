"""Commands, and what is no answer of a node: that of a gateway, of a page to log in, of a proxy that damages it.

Each command says in one sentence what is wrong, with the exit code of its help, and never that the fault is fedstac's.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from fedstac.cli import app
from fedstac.demo import sample
from tests.support.answering import answering
from tests.support.commands import Fedstac, Result, lines

DATASET = "CMIP6.CMIP.NCAR.CESM2.historical.r1i1p1f1.Amon.tas.gn.v20200101"
ONE = "7c1f0000-0000-4000-8000-000000000000"
COMMANDS = (
    "access explain publish", "bulk cancel", "bulk datasets", "bulk list", "bulk show", "changes --since start",
    f"check-downloads {DATASET}", "collections cascade CMIP6", "collections create CMIP6",
    "collections delete CMIP6 --yes", "collections list", "collections show CMIP6",
    "collections update CMIP6 --title T", f"delete {DATASET} --yes", "deletion config", "deletion list",
    f"deletion remind {ONE}", "deletion run --yes",
    f"deletion show {ONE}", f"deletion waive {ONE} east --reason gone --yes", f"diff {DATASET} {DATASET}", "facets",
    "feed tail", f"files {DATASET}", f"get {DATASET}", "grant check CMIP6/x --subject person:1", "grant export",
    "grant give person:1 --project CMIP6 --until 2999-01-01", "grant import grants.ndjson", "grant list",
    "grant private", f"grant withdraw {ONE} --reason over", "groups create g --project CMIP6 --institution NCAR",
    "groups delete g --yes", "groups list", "groups manager add g person:1", "groups manager remove g person:1",
    "groups member add g person:1", "groups member remove g person:1", "groups show g", f"history {DATASET}",
    f"load cancel {ONE}", "load list", f"load show {ONE}", "login --no-browser", "logout", f"mark {DATASET} --yes",
    "notifications add mailto:a@example.org", f"notifications confirm {ONE} 123", "notifications list",
    f"notifications remove {ONE}", f"notifications show {ONE}", f"notifications test {ONE}",
    f"patch {DATASET} --set a=b --yes", "publish - -c CMIP6", f"purge {DATASET} --yes",
    f"quarantine {DATASET} --reason r --yes", "reconcile - -c CMIP6 --yes", f"reinstate {DATASET} --yes",
    f"release {DATASET} --decision d --yes", f"replica add {DATASET} -n east --base-url https://east.example/ --yes",
    f"replica list {DATASET}", f"replica remove {DATASET} -n east --yes", f"replica verify {DATASET}",
    f"requests cancel {ONE}", "requests list", f"requests retry {ONE}", f"requests show {ONE}",
    f"retract {DATASET} --reason r --yes", "search", f"status {ONE}", "subscription ack s 1.1",
    "subscription dead-letters s", "subscription follow s", "subscription list", f"subscription nack s {ONE}",
    "subscription next s", "subscription put s", "subscription redrive s 1", "subscription remove s --yes",
    "subscription seek s start", "subscription show s", f"unmark {DATASET} --yes", "whoami",
)  # fmt: skip


def commands_in(group: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """Yield the names of the commands that ask a server."""
    if hasattr(group, "commands"):
        for name, command in group.commands.items():
            yield from commands_in(command, *names, name)
    elif names and any("--url" in parameter.opts for parameter in group.params):
        yield names


def test_every_command_that_asks_a_server_is_here() -> None:
    texts = [f"{command} " for command in COMMANDS]
    assert not [names for names in commands_in(get_command(app)) if not any(
        text.startswith(" ".join(names) + " ") for text in texts)]  # fmt: skip


async def at(fedstac: Fedstac, url: str, command: str, folder: Path) -> Result:
    (folder / "grants.ndjson").write_text(
        json.dumps({"subject": "person:1", "project": "CMIP6", "valid_until": "2999-01-01T00:00:00Z"}) + "\n"
    )
    words = command.split()
    return await fedstac(
        *words, stdin=lines(list(sample.items(1))), FEDSTAC_URL=url, FEDSTAC_TOKEN="" if words[0] == "login" else "t",
        FEDSTAC_RETRIES="0",
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
async def test_an_object_that_no_node_answers_with_is_not_our_fault(
    command: str, fedstac: Fedstac, tmp_path: Path
) -> None:
    with answering([(200, {"Content-Type": "application/json"}, b"{}")]) as (url, _):
        done = await at(fedstac, url, command, tmp_path)
    print(command, done)
    assert done.code != 70
    assert "fault in fedstac" not in done.stderr
    assert "Traceback" not in done.stderr


PAGE = b"<!doctype html><title>Log in to the network</title>"
STRANGE = {
    "a page": (200, {"Content-Type": "text/html"}, PAGE, "did not answer with JSON"),
    "nothing": (200, {}, b"", "did not answer with JSON"),
    "a list": (200, {}, b"[]", "did not answer with a JSON object"),
    "null": (200, {}, b"null", "did not answer with a JSON object"),
    "an object": (200, {}, b'{"status": "ok"}', "is it the address of a fedstac node?"),
    "a body that is cut off": (200, {"Content-Length": "999"}, b"{}", "does not answer (tried once: "),
    "a damaged compression": (
        200, {"Content-Encoding": "gzip"}, gzip.compress(b"{}")[:-9] + b"damaged", "is there a proxy on the way?"
    ),
    "a redirection": (302, {"Location": "https://elsewhere.example/"}, PAGE, "answered 302 Found to https://elsewhere"),
    "a page that is away": (502, {}, PAGE, "answered 502 Bad Gateway"),
    "busy until no calendar has it": (
        503, {"Retry-After": "Mon, 01 Jan 99999999999999 00:00:00 GMT"}, PAGE, "answered 503 Service Unavailable"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("command", ["bulk list", "deletion list", "feed tail --after 1.1", "requests list", "search"])
async def test_what_is_no_answer_of_a_node_is_named_in_one_line(
    kind: str, command: str, fedstac: Fedstac, tmp_path: Path
) -> None:
    *answer, phrase = STRANGE[kind]
    if command.startswith("feed"):  # a page of events is a list, with its cursor in a header
        phrase = {"a list": "a page of events", "null": "a page of events", "an object": "a page of events"}.get(
            kind, phrase
        )
    elif command == "search":
        phrase = {"an object": "did not answer with a FeatureCollection"}.get(kind, phrase)
    with answering([tuple(answer)]) as (url, _):  # type: ignore[list-item]
        done = await at(fedstac, url, command, tmp_path)
    assert (done.code, done.stdout) == (5, ""), done
    assert phrase in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["deletion list", "notifications list", "bulk list"])
async def test_who_waits_is_told_why_before_it(command: str, fedstac: Fedstac) -> None:
    busy = (503, {"Retry-After": "1"}, b"{}")
    with answering([busy, (404, {}, b"{}")]) as (url, _):
        done = await fedstac(*command.split(), FEDSTAC_URL=url, FEDSTAC_TOKEN="t", FEDSTAC_RETRIES="1")
    notice, end = done.stderr.splitlines()
    assert notice == f"{url} answers 503 Service Unavailable; try 2 of 2 in 1 s"
    assert "answered 404" in end


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize("arguments", [("get",), ("search", "--filter"), ("patch", "--yes", "--set"), ("publish",)])
async def test_what_is_no_text_is_named_and_not_our_fault(
    arguments: tuple[str, ...], form: str, fedstac: Fedstac
) -> None:
    with answering([(200, {}, b"{}")]) as (url, _):
        done = await fedstac(*arguments, "caf\udce9", "-o", form, FEDSTAC_URL=url, FEDSTAC_TOKEN="t")
    assert done.code == 2, done
    assert "caf" in done.stderr
    assert ("Traceback" in done.stderr, "fault in fedstac" in done.stderr) == (False, False)


@pytest.mark.parametrize("address", ["http://[bad", "http://host:port", "https://", "http://a b/", "ftp://x"])
async def test_what_is_no_address_is_wrong_usage(address: str, fedstac: Fedstac) -> None:
    for command in (("search",), ("deletion", "list"), ("login",)):
        done = await fedstac(*command, FEDSTAC_URL=address)
        assert (done.code, done.stdout) == (2, ""), done
        assert "is no address of a server" in " ".join(done.stderr.replace("│", " ").split())


async def test_a_file_that_cannot_be_written_is_named(fedstac: Fedstac, tmp_path: Path) -> None:
    answer = b'{"type": "FeatureCollection", "features": [], "numberMatched": 0, "links": []}'
    with answering([(200, {}, answer)]) as (url, _):
        done = await fedstac("search", "-o", "parquet", "--to", "nowhere/x.parquet", FEDSTAC_URL=url)
    assert done.code == 2
    assert done.stderr.startswith("fedstac: nowhere/x.parquet")
    assert "No such file or directory" in done.stderr
    assert "FEDSTAC_DSN" not in done.stderr
