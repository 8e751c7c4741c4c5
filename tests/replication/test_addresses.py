"""Which addresses are fetched: those of listed hosts, never private ones that nobody listed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedstac.domain.replication.choosing import HostPattern, Source
from fedstac.replication.addresses import AddressRefused, AddressRules
from fedstac.replication.copying import CopyOrder, copy_file
from fedstac.replication.transports import CopyCause, CopyFailed, Transports
from fedstac.replication.transports.https import HttpsTransport
from tests.support.file_server import file_server

RULES = AddressRules(
    ("data.example.org", "*.esgf.example", "east.example:8443", "127.0.0.1", "[::1]:8080", "s3://cmip7",
     "globus://8a3f", "file:///data/in")
)  # fmt: skip


@pytest.mark.parametrize(
    "href",
    ["https://data.example.org/a.nc", "http://DATA.example.org.:81/a.nc?x=1", "https://a.b.esgf.example/x",
     "https://east.example:8443/x", "http://127.0.0.1:5/x", "http://[::1]:8080/x", "s3://cmip7/a/b.nc",
     "globus://8a3f/a.nc", "file:///data/in/a%20b.nc", "file://localhost/data/in/a.nc"],
)  # fmt: skip
def test_addresses_of_listed_hosts_are_fetched(href: str) -> None:
    RULES.judge(href)


@pytest.mark.parametrize(
    "href",
    ["", "a.nc", "https://", "https://other.example/a", "https://data.example.org@other.example/", "https://u@data.example.org/",
     "https://data.example.org.evil.example/", "https://evil-data.example.org/", "https://esgf.example/x",
     "https://east.example/x", "https://east.example:8444/x", "http://127.1/", "http://2130706433/", "http://0x7f.1/",
     "http://[::1]/x", "http://[::ffff:127.0.0.1]/", "http://localhost/", "http://169.254.169.254/latest",
     "https://data.example.org:99999/", "https://data.example.org:x/", "https://data.example.org/a\r\nHost: x",
     "https://data.example.org\t/", "s3://other/a", "s3://cmip7", "s3://cmip7.evil/a", "globus://8a3f", "globus://other/a",
     "file:///data/input/a", "file:///data/in/../a", "file:///data/in/%2e%2e/a", "file:///etc/passwd", "file://host/data/in/a",
     "ftp://data.example.org/a", "javascript:alert(1)", "http://data.example.org\\@evil.example/", "http://[/x",
     "https://data.example.org/" + "a" * 9000, "gopher://127.0.0.1/"],
)  # fmt: skip
def test_other_addresses_are_not(href: str) -> None:
    with pytest.raises(AddressRefused):
        RULES.judge(href)


def test_the_sources_of_a_policy_are_what_is_fetched_from() -> None:
    patterns = ("data.example.org", "http://10.0.0.7:8080", "https://[fd00::1]:*", "s3://cmip7", "file:///data/in")
    hosts = tuple(host for text in patterns if (host := HostPattern.parse(text)))
    assert len(hosts) == len(patterns)
    rules = AddressRules.of_sources([Source("east", hosts), Source("own", hosts[:1], private=True)])
    fine = ("https://data.example.org/a", "http://10.0.0.7:8080/a", "https://[fd00::1]:7/a", "s3://cmip7/a",
            "file:///data/in/a")  # fmt: skip
    for href in fine:
        rules.judge(href)
    for href in ("http://data.example.org/a", "https://data.example.org:8443/a", "https://10.0.0.7:8080/", "file:///a"):
        with pytest.raises(AddressRefused):
            rules.judge(href)
    rules.judge_connection("10.0.0.7", 8080, ["10.0.0.7"])
    rules.judge_connection("data.example.org", 443, ["192.168.0.1"])
    with pytest.raises(AddressRefused):
        AddressRules.of_sources([Source("east", hosts)]).judge_connection("data.example.org", 443, ["192.168.0.1"])


def test_an_address_is_written_as_http_takes_it_and_shown_without_its_query() -> None:
    url = RULES.judge("https://data.example.org/a b/ä%20.nc?token=ö x#part")
    assert url.target == "/a%20b/%C3%A4%20.nc?token=%C3%B6%20x"
    assert url.for_people == "https://data.example.org/a%20b/%C3%A4%20.nc"


@pytest.mark.parametrize(
    ("rules", "host", "addresses", "is_fine"),
    [
        (AddressRules(("a.example",)), "a.example", ["93.184.216.34"], True),
        (AddressRules(("a.example",)), "a.example", ["93.184.216.34", "10.0.0.1"], False),
        (AddressRules(("a.example",)), "a.example", ["::ffff:10.0.0.1"], False),
        (AddressRules(("a.example",)), "a.example", ["169.254.169.254"], False),
        (AddressRules(("a.example",)), "a.example", ["fe80::1%eth0"], False),
        (AddressRules(("a.example",), ("a.example",)), "a.example", ["10.0.0.1"], True),
        (AddressRules(("a.example", "b.example"), ("a.example",)), "b.example", ["10.0.0.1"], False),
        (AddressRules(("a.example",), ("a.example:80",)), "a.example", ["10.0.0.1"], False),  # not 443
        (AddressRules(("a.example",), ("10.0.0.0/8",)), "a.example", ["10.0.0.1"], True),
        (AddressRules(("a.example",), ("10.0.0.0/8",)), "a.example", ["10.0.0.1", "127.0.0.1"], False),
        (AddressRules(("127.0.0.1",)), "127.0.0.1", ["127.0.0.1"], True),
        (AddressRules(("*",)), "127.0.0.1", ["127.0.0.1"], False),
    ],
)  # fmt: skip
def test_private_addresses_are_connected_to_where_they_are_listed_only(
    rules: AddressRules, host: str, addresses: Sequence[str], is_fine: bool
) -> None:
    try:
        rules.judge_connection(host, 443, addresses)
    except AddressRefused:
        assert not is_fine
    else:
        assert is_fine


async def test_a_name_is_resolved_once_and_the_address_that_was_judged_is_connected_to(tmp_path: Path) -> None:
    content = b"x" * 1000
    answers = [["93.184.216.34", "127.0.0.1"], ["127.0.0.1"]]
    names: list[str] = []

    def find(host: str, port: int) -> Sequence[str]:
        names.append(host)
        return answers.pop(0)

    rules = AddressRules(("data.test",))
    async with file_server(content) as server, Transports(lambda: rules) as transports:
        transports.use("https", HttpsTransport(lambda: rules, threads=transports.threads, stall_seconds=5, find=find))
        order = CopyOrder(tmp_path, "a.nc", 1000, "1220" + hashlib.sha256(content).hexdigest(),
                          f"http://data.test:{server.port}/a.nc")  # fmt: skip
        with pytest.raises(CopyFailed, match="leads to an address that is not of the internet") as failure:
            await copy_file(order, transports=transports)
        assert failure.value.cause == CopyCause.SOURCE_REFUSES  # a name may lead elsewhere in a minute
        assert not server.requests
        rules = AddressRules(("data.test",), ("data.test",))  # as a policy that is read anew
        await copy_file(order, transports=transports)
        assert names == ["data.test", "data.test"]
        (tmp_path / "a.nc").unlink()
        await copy_file(order, transports=transports)  # by the same connection
        assert len(names) == 2
        (tmp_path / "a.nc").unlink()
        rules, answers[:] = AddressRules(("data.test",)), [["127.0.0.1"]]
        with pytest.raises(CopyFailed, match="leads to an address"):  # which the policy does not list any more
            await copy_file(order, transports=transports)
