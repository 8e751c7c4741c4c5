"""A small federation and a folder with what the pages mention, for their commands to run in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from fedstac.demo import embedded
from fedstac.demo.brokers import NatsServer
from fedstac.demo.federation import WEST, Federation
from tests.docs.shell import Command

NODES = ("west", "north")


PASSWORD = "secret"


STOP = "kill $(jobs -p) 2>/dev/null; wait"


# Exit codes other than 0 that a command of the pages is meant to have.
CODES = {
    "fedstac vocab diff": 1,  # they differ
    "fedstac replica verify": 1,  # nobody has the files
    "fedstac access explain publish": 4,  # robot may not
    "fedstac doctor": 1,  # the PostgreSQL of tests does not sync
    "fedstac get ID;": 1,  # ends with a diff
}


SERVERS = re.compile(
    r"^(?:env \$\(cat \S+\) |[A-Z_]+=(?:\"[^\"]*\"|\S*) )*fedstac (serve|worker|sequencer|index-node|replica-node)\b"
)


@dataclass
class Site:
    """Where commands run."""

    running: Federation
    cluster: embedded.Cluster
    folder: Path
    published: Sequence[Mapping[str, object]]
    nats: NatsServer

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a reader: the programs, PostgreSQL as its superuser, west, an administrator's token."""
        programs = (self.folder / "programs", Path(sys.executable).parent, embedded.find_binaries(), os.environ["PATH"])
        return {
            "PATH": ":".join(map(str, programs)), "HOME": str(self.folder / "home"), "LC_ALL": "C.UTF-8",
            "TERM": "dumb", "COLUMNS": "200", "PGHOST": "127.0.0.1", "PGPORT": str(self.cluster.port),
            "PGUSER": "postgres", "PGPASSWORD": self.cluster.superuser_password,
            "FEDSTAC_URL": self.running.west, "FEDSTAC_TOKEN": self.running.tokens["admin"], "FEDSTAC_NODE": WEST,
            "FEDSTAC_DSN": self.running.database_of(WEST), "FEDSTAC_PORT": "0",
            "FEDSTAC_OWNER_DSN": self.cluster.dsn("fedstac_west", user="fedstac_owner"),
        }  # fmt: skip

    @property
    def replica_settings(self) -> dict[str, str]:
        """The settings of a replica node of west's, with the policy and the folder that its page mentions."""
        return {
            "FEDSTAC_NODE": "replica", "FEDSTAC_DSN": self.dsn("fedstac_replica", "fedstac_writer"),
            "FEDSTAC_SOURCE": self.running.west, "FEDSTAC_SOURCE_TOKEN": self.running.tokens["node:replica"],
            "FEDSTAC_REPLICA_POLICY": str(self.folder / "work" / "replica.yaml"),
            "FEDSTAC_REPLICA_FOLDER": str(self.folder / "files"),
            "FEDSTAC_REPLICA_URL": "https://replica.example/files",
            "FEDSTAC_REPLICA_TOKEN": self.running.tokens["node:replica"],
        }  # fmt: skip

    def dsn(self, database: str, user: str) -> str:
        """Return a DSN by TCP and with a password, as a reader writes it."""
        return f"postgresql://{user}:{PASSWORD}@127.0.0.1:{self.cluster.port}/{database}"

    def as_superuser(self, statement: str) -> None:
        with psycopg.connect(self.cluster.dsn(), autocommit=True) as conn:
            conn.execute(statement.encode())

    def run(self, commands: Sequence[tuple[Command, str]], settings: Mapping[str, str]) -> list[str]:
        """Run the commands of a section in one shell, each as the text beside it. Return those that failed.

        A command that serves is started, and has to get ready. It ends with the section, or before a rebuild.
        """
        script = ["cd work"]
        for n, (_, text) in enumerate(commands):
            if SERVERS.match(text):
                script.append(
                    f"{text} --ready-file ../ready-{n} >../out-{n} 2>&1 </dev/null &\n"
                    f"pid=$!; until [ -e ../ready-{n} ] || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done\n"
                    f"[ -e ../ready-{n} ]; echo $? >../code-{n}"
                )
            else:
                if text.startswith("fedstac rebuild"):
                    script.append(STOP)
                script.append(f"{{ {text}\n}} >../out-{n} 2>&1 </dev/null; echo $? >../code-{n}")
        place = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(self.folder / "work", place / "work", symlinks=True)
        subprocess.run(
            ["bash", "-c", "\n".join([*script, STOP])],
            cwd=place,
            env={**self.environment, **settings},
            timeout=600,
            check=False,
        )
        failures = []
        for n, (command, _) in enumerate(commands):
            code = (place / f"code-{n}").read_text().strip() if (place / f"code-{n}").exists() else "nothing"
            if code != str(next((given for start, given in CODES.items() if command.text.startswith(start)), 0)):
                failures.append(f"{command}\n  gave {code}: {(place / f'out-{n}').read_text()[-600:]}")
        return failures
