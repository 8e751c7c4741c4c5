"""The files in deploy/: systemd accepts the units, nginx the settings, and a node works behind that nginx."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from fedstac.settings import Settings
from tests.docs.shell import REPOSITORY
from tests.scenarios.watching import wait_until
from tests.support.nodes import running
from tests.support.waiting import until

DEPLOY = REPOSITORY / "deploy"
UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))
SYSTEMD, NGINX = shutil.which("systemd-analyze"), shutil.which("nginx")


@pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_a_unit(name: str, tmp_path: Path) -> None:
    text = (DEPLOY / name).read_text()
    assert "ExecStart=/opt/fedstac/bin/fedstac " in text
    unit = tmp_path / name
    unit.write_text(text.replace("/opt/fedstac/bin/fedstac", str(Path(sys.executable).parent / "fedstac")))
    done = subprocess.run([str(SYSTEMD), "verify", unit], capture_output=True, text=True, check=False)
    mine = [line for line in done.stderr.splitlines() if name.split("@")[0].split(".")[0] in line]
    assert (done.returncode, mine) == (0, [])


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_a_command_that_there_is(name: str) -> None:
    [command] = re.findall(r"^ExecStart=\S+ (.+)$", (DEPLOY / name).read_text(), re.M)
    done = subprocess.run([sys.executable, "-m", "fedstac.cli", *command.split(), "--help"], capture_output=True)
    assert done.returncode == 0


def test_the_settings_file_has_settings_only() -> None:
    lines = [line for line in (DEPLOY / "fedstac.env").read_text().splitlines() if line and not line.startswith("#")]
    names = {line.partition("=")[0].removeprefix("FEDSTAC_").lower() for line in lines}
    assert names <= set(Settings.model_fields)
    assert all(line.startswith("FEDSTAC_") for line in lines)


@contextmanager
def nginx(folder: Path, upstream: str, path: str = "") -> Iterator[str]:
    """Yield the example as it is but for names, ports and the certificate; under a path as docs/deployment.md says."""
    text = (DEPLOY / "nginx.conf").read_text()
    port = _free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=west.example", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    for old, new in {
        "127.0.0.1:8080": upstream.removeprefix("http://"),
        "/etc/ssl/fedstac/fullchain.pem": str(folder / "cert.pem"),
        "/etc/ssl/fedstac/privkey.pem": str(folder / "key.pem"),
        "listen 80;": f"listen 127.0.0.1:{_free_port()};",
        "listen 443 ssl http2; ": f"listen 127.0.0.1:{port} ssl http2; ",
        "    listen [::]:80;\n": "",
        "    listen [::]:443 ssl http2;\n": "",
        "location / {": f"location {path}/ {{",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    temporary = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder / 'pid'};\nerror_log {folder / 'error.log'};\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{text}}}\n"
    )
    command = [str(NGINX), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text().strip(), what="nginx listens")
            yield f"https://127.0.0.1:{port}{path}"
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that nginx's workers, of another account, can enter."""
    made = Path(tempfile.mkdtemp(prefix="fedstac-nginx-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize("path", ["", "/stac"])
async def test_a_node_works_behind_the_example(place: Path, dsn: str, path: str) -> None:
    config = Settings(dsn=dsn, node="west", public_url=f"https://west.example{path}", _env_file=None)
    insecure = ssl.create_default_context()
    insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
    async with running(config) as api, httpx.AsyncClient(verify=insecure, trust_env=False, timeout=60) as http:
        with nginx(place, api.url, path) as url:
            links = {link["rel"]: link["href"] for link in (await http.get(f"{url}/")).json()["links"]}
            assert links["self"].startswith(f"https://west.example{path}")
            bearer = {"Authorization": f"Bearer {api.tokens['admin']}"}
            assert (await http.get(f"{url}/me", headers=bearer)).status_code == 200
            with capture_logs() as logs:
                made_up = {"X-Forwarded-For": "198.51.100.1"}
                assert (await http.get(f"{url}/search?limit=1", headers=made_up)).status_code == 200

                async def line() -> MutableMapping[str, Any] | None:
                    return next((each for each in logs if each.get("path", "").endswith("/search")), None)

                written = await until(line)
            assert written is not None
            assert written["forwarded_for"] == "127.0.0.1"  # what the proxy sees, and not what its client says
            long = {"Authorization": f"Bearer {'x' * 8000}"}
            assert (await http.get(f"{url}/me", headers=long)).status_code == 401
            large = await http.post(f"{url}/collections/CMIP6/items", headers=bearer, content=b" " * (65 << 20))
            assert (large.status_code, large.headers["content-type"]) == (413, "application/problem+json")
