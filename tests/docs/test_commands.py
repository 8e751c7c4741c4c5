"""Every shell command of README.md and docs/*.md runs as it is written, or is listed here with the reason why not."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import pytest

from fedstac.demo.federation import WEST
from tests.docs.shell import FIRST_FEDERATION, PAGES, REPOSITORY, Command, commands
from tests.scenarios import watching
from tests.support.pages import NODES, Site

# Why commands that begin so are not run. What is listed and stands in no page is a mistake too.
NOT_RUN: Mapping[str, tuple[str, ...]] = {
    "needs a Docker daemon; test_docker.py checks compose.yml, tests/scenarios/test_image.py runs the image": (
        "docker compose", "cp docker/",
    ),
    "needs root or systemd; test_deploy.py checks the units and the proxy's settings": ("sudo ", "journalctl "),
    "installs from a package index; test_install.py installs the wheel of this checkout": (
        "pipx install", "uv tool install", "python3 -m venv", "~/fedstac/bin/", "/opt/fedstac/bin/", "pip install",
    ),
    "installs what is missing and takes minutes; CI runs `make test`, tests/scenarios/test_demo.py the demonstration": (
        "make ", ".venv/bin/fedstac demo --check", "fedstac demo",
    ),
    "needs a person at an identity provider's page; tests/identity/test_login.py": ("fedstac login", "fedstac logout"),
    "reads sources of thousands of files; tests/vocabularies/test_importing.py": ("fedstac vocab import",),
    "fetches files that are on no server; tests/client/test_files.py": (
        "fedstac files -c", "fedstac files ID --format",
        "fedstac search -c CMIP6 --filter \"cmip6:variable_id = 'tas'\" --limit 0 -o wget",
    ),
    "finds datasets without a copy in the demonstration, and so ends with 1; tests/db/replica/test_orphans.py": (
        "fedstac replica orphans",
    ),
    "goes on until somebody ends it; tests/client/test_subscription_commands.py": ("fedstac subscription follow",),
    "needs a sidecar, which `make dapr` builds; tests/messaging/test_dapr.py, tests/api/test_dapr_reports.py": (
        "APP_API_TOKEN=", "curl -X POST http://127.0.0.1:3500",
    ),
    "states what files of the reader's have, or another API; tests/client/test_reconcile_command.py": (
        "fedstac reconcile",
    ),
    "a server is recovered by tests/scenarios/test_backup.py": (
        "pg_basebackup", "cp -a /backup", "cat >> /var/lib", "touch /var/lib",
    ),
}  # fmt: skip
# The node that the section itself has started, with the first token that it has issued.
OWN_NODE = (
    "FEDSTAC_URL=$(grep -oh 'http://[0-9.:]*' ../ready-* | head -1) "
    "FEDSTAC_TOKEN=$(grep -oh 'fst_[A-Za-z0-9_-]*' ../out-* | head -1)"
)
# Sections whose commands another test runs
ELSEWHERE = {("docs/operations.md", FIRST_FEDERATION): "test_first_federation.py runs it, with a broker of its own"}
pytestmark = pytest.mark.long
PAGE_NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES if commands(page)]


def reason(command: Command) -> str | None:
    """Return why a command is not run; None if it is."""
    if (command.page, command.section) in ELSEWHERE:
        return ELSEWHERE[command.page, command.section]
    return next((why for why, starts in NOT_RUN.items() if command.text.startswith(starts)), None)


def test_every_reason_not_to_run_a_command_is_needed() -> None:
    texts = [command.text for page in PAGES for command in commands(page)]
    starts = [start for group in NOT_RUN.values() for start in group]
    assert [start for start in starts if not any(text.startswith(start) for text in texts)] == []


def as_run(site: Site, text: str) -> str:
    """Return a command with addresses, ids and secrets of the federation in the places that pages leave for them."""
    first, second = (str(item["id"]) for item in site.published[:2])
    token = site.running.tokens["node:east" if "index-node" in text else "admin"]
    north = site.running.issued["north"]["node:east"]
    for pattern, there in {
        r"\.venv/bin/fedstac": "fedstac",
        r'"fst_… fst_…"': f'"{token} {north}"',
        r"FEDSTAC_URL=https://west\.example FEDSTAC_TOKEN=fst_…": OWN_NODE,
        r"fst_…": token,
        r"\$TOKEN": token,
        r"https://west\.example/collections": f"{site.running.west}/collections",
        r"CMIP6/CMIP6\.CMIP\.…\.v20201018": f"CMIP6/{first}",
        r"CORDEX": "CMIP6",
        r"--since 1\.4711": "--since start",
        r"nats://127\.0\.0\.1:4222": site.nats.url,
        r"http://127\.0\.0\.1:8080": site.running.west,
        r"=https://west\.example": f"={site.running.west}",
        r'"https://west\.example https://north\.example"': f'"{site.running.west} {site.running.address_of("north")}"',
        r"--source https://west\.example": f"--source {site.running.west}",
        r"--source https://north\.example": f"--source {site.running.address_of('north')}",
        r"FEDSTAC_DSN=…": f"FEDSTAC_DSN={site.dsn('fedstac_east', 'fedstac_writer')}",
        r":(?:…|secret)@(?:db|localhost)/": f":secret@127.0.0.1:{site.cluster.port}/",
        r"CMIP6\.(?:CMIP\.NCAR\.)?…": first,
        r"--file=fedstac\.dump fedstac$": "--file=fedstac.dump fedstac_west",
        r"\bID2\b": second,
        r"\bID\b": first,
        r"/data/CMIP6": str(site.folder / "data"),
        r"/srv/fedstac": str(site.folder),
        r"(?<=replica policy check )FILE|(?<=replica plan )FILE": str(site.folder / "work" / "replica.yaml"),
        r"/etc/fedstac": str(site.folder / "work"),
        r"<request>|<id>": request_of(site),
        r"search …": "search -c CMIP6",
        r"…": "x",
    }.items():
        text = re.sub(pattern, there.replace("\\", r"\\"), text)
    return text


def request_of(site: Site) -> str:
    return str(watching.values(site.running, "SELECT id::text FROM fedstac.request LIMIT 1")[0])


def settings_of(site: Site, page: str, section: str) -> Mapping[str, str]:
    """Return what a reader has set before a section begins, if it is not west's administrator."""
    match page, section:
        case ("docs/backup.md", "Dump and restore"):
            return {
                "FEDSTAC_OWNER_DSN": site.dsn("fedstac", "fedstac_owner"),
                "FEDSTAC_DSN": site.dsn("fedstac", "fedstac_writer"),
            }
        case "docs/events.md", _:
            return {"FEDSTAC_TOKEN": site.running.tokens["node:east"]}
        case "docs/replication.md", "Files that are in danger":
            return {"FEDSTAC_NODE": "east", "FEDSTAC_DSN": site.dsn("fedstac_east", "fedstac_writer")}
        case "docs/replication.md", "On your own machine":
            return {"FEDSTAC_SOURCE_TOKEN": "", "FEDSTAC_REPLICA_TOKEN": ""}  # it has client credentials
        case "docs/replication.md", _:
            return site.replica_settings
        case "docs/operations.md", "An index node" | "Several publishing nodes":
            sources = (WEST,) if section == "An index node" else NODES
            return {
                "FEDSTAC_NODE": "east", "FEDSTAC_DSN": site.dsn("fedstac_east", "fedstac_writer"),
                "FEDSTAC_SOURCE": " ".join(site.running.address_of(source) for source in sources),
                "FEDSTAC_SOURCE_TOKEN": " ".join(site.running.issued[source]["node:east"] for source in sources),
            }  # fmt: skip
    return {}


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_the_commands_of_a_page_run(site: Site, name: str) -> None:
    wanted = [command for command in commands(REPOSITORY / name) if reason(command) is None]
    failures = []
    for section, group in itertools.groupby(wanted, key=lambda command: command.section):
        texts = [(command, as_run(site, command.text)) for command in group]
        site.as_superuser("DROP DATABASE IF EXISTS fedstac WITH (FORCE)")  # of the section before
        if not any(text.startswith("createdb") for _, text in texts):
            site.as_superuser("CREATE DATABASE fedstac")
        failures += site.run(texts, settings_of(site, name, section))
    assert not failures, "\n".join(failures)
