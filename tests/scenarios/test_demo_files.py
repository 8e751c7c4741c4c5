"""The file server of the demonstration, and datasets whose files it serves."""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedstac.demo import files, sample
from fedstac.demo.files import FileFolder, FileSizes
from fedstac.demo.replica import POLICY
from fedstac.domain.replication.policy import ReplicaAction, ReplicaPolicy
from tests.support.faulty_proxy import FaultPlan, faults_at, faulty_proxy
from tests.support.file_servers import file_server
from tests.support.forking import Forks


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory, command_forks: Forks) -> Iterator[httpx.Client]:
    """A client of a file server with /a/data.nc, hidden files, and a secret beside its folder."""
    root: Path = tmp_path_factory.mktemp("files")
    folder = root / "served"
    (folder / "a" / ".fedstac-part").mkdir(parents=True)
    (folder / "a" / "data.nc").write_bytes(bytes(range(256)) * 1000)
    (folder / "a" / ".fedstac-part" / "1220ab").write_bytes(b"half")
    (folder / ".hidden").write_bytes(b"hidden")
    (root / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(root / "secret")
    with file_server(command_forks.program, folder) as url, httpx.Client(base_url=url, trust_env=False) as client:
        yield client


def test_ranges_and_head(http: httpx.Client) -> None:
    whole = http.get("/a/data.nc")
    assert (whole.status_code, len(whole.content)) == (200, 256_000)
    head = http.head("/a/data.nc")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "256000", b"")
    part = http.get("/a/data.nc", headers={"Range": "bytes=100-", "If-Range": head.headers["etag"]})
    assert (part.status_code, part.headers["content-range"]) == (206, "bytes 100-255999/256000")
    assert part.content == whole.content[100:]
    other = http.get("/a/data.nc", headers={"Range": "bytes=100-", "If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, whole.content)
    assert http.get("/a/data.nc", headers={"Range": "bytes=256000-"}).status_code == 416


def test_no_way_leads_out_of_the_folder_or_to_what_is_hidden(http: httpx.Client) -> None:
    address = (http.base_url.host, http.base_url.port or 0)
    for path in ("/../secret", "/a/../../secret", "/%2e%2e/secret", "/link", "/.hidden", "/a/.fedstac-part/1220ab",
                 "/a", "/a/%2e%66edstac-part/1220ab", "//etc/passwd", "/a/data.nc%00"):  # fmt: skip
        with socket.create_connection(address, timeout=20) as raw:  # httpx would tidy up the path
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 404 "), (path, answer[:100])
    assert http.post("/a/data.nc").status_code == 405


def test_datasets_have_the_files_that_they_name(tmp_path: Path) -> None:
    place = FileFolder(tmp_path, "http://127.0.0.1:9", FileSizes(10, 200_000))
    made = list(files.datasets(3, place))
    listed = {asset["file:local_path"]: asset for item in made for asset in item["assets"].values()
              if "file:checksum" in asset}  # fmt: skip
    present = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert listed.keys() == present.keys()
    for path, target in present.items():
        assert listed[path]["href"] == f"http://127.0.0.1:9/{path}"
        assert listed[path]["file:size"] == target.stat().st_size
        assert listed[path]["file:checksum"] == "1220" + hashlib.sha256(target.read_bytes()).hexdigest()
    for item in made:
        assert item["properties"]["size"] == sum(asset.get("file:size", 0) for asset in item["assets"].values())
    before = {path: target.stat().st_mtime_ns for path, target in present.items()}
    assert list(files.datasets(3, place)) == made
    assert {path: target.stat().st_mtime_ns for path, target in present.items()} == before, "nothing is written again"
    assert list(files.datasets(1, place, start=2)) == made[2:]


def test_datasets_are_cut_to_the_number_of_files(tmp_path: Path) -> None:
    place = FileFolder(tmp_path, "http://127.0.0.1:9", FileSizes(1, 9), least_files=5, most_files=5)
    made = list(files.datasets(4, place))
    assert [sum("file:checksum" in asset for asset in item["assets"].values()) for item in made] == [5] * 4
    assert len({item["id"] for item in made}) == 4


def test_datasets_with_files_are_new_and_smaller_than_the_others(tmp_path: Path) -> None:
    """So the policy of the demonstration tells them apart."""
    made = list(files.datasets(40, FileFolder(tmp_path, "http://127.0.0.1:9")))
    others = list(sample.items(5000))
    policy = ReplicaPolicy.parse(POLICY.format(url="http://127.0.0.1:9"))
    assert {policy.decide(item, "CMIP6").action for item in made} == {ReplicaAction.REPLICATE}
    assert {policy.decide(item, "CMIP6").action for item in others[:200]} == {ReplicaAction.IGNORE}
    assert all(policy.source_of(asset["href"]) for item in made for asset in item["assets"].values()
               if "file:checksum" in asset)  # fmt: skip
    assert not {item["id"] for item in others} & {item["id"] for item in made}
    assert max(item["properties"]["size"] for item in made) < min(item["properties"]["size"] for item in others)


def test_a_proxy_has_its_faults_and_lets_through_who_tries_again(http: httpx.Client) -> None:
    """The proxy is a tool of other tests; here it is looked at itself."""
    whole = http.get("/a/data.nc").content
    seed = secrets.randbelow(1000)
    plan = FaultPlan(str(http.base_url).rstrip("/"), seed, share=1.0, stall_seconds=0.01)
    with faulty_proxy(plan) as url, httpx.Client(base_url=url, trust_env=False) as proxy:
        failures = 0
        for _ in range(4):
            try:
                answer = proxy.get("/a/data.nc")
            except httpx.TransportError:
                failures += 1
                continue
            if answer.status_code == 503:
                failures += 1
            else:
                assert answer.content == whole
        history = faults_at(url)
        assert failures == history["faults"].get("cut", 0) + history["faults"].get("503", 0)
        assert sum(history["faults"].values()) == 2
        assert history["requests"] == {"/a/data.nc": 4}
        assert proxy.get("/a/data.nc", headers={"Range": "bytes=255990-"}).content == whole[255_990:]
    with faulty_proxy(FaultPlan(plan.upstream, seed, corrupt=["a/data.nc"])) as url:
        corrupt = httpx.get(f"{url}/a/data.nc", trust_env=False).content
    assert len(corrupt) == len(whole)
    assert sum(a != b for a, b in zip(corrupt, whole, strict=True)) == 1
