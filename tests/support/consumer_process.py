"""An index node or a replica node whose processes are killed at failpoints, one after the other.

`python -m tests.support.consumer_process ROLE WORDS…` imports everything once, reads the node's settings in JSON from
standard input, and forks a child for each of the words: failpoints as tests/support/failpoints.py reads them. A child
runs the parts of the role until it is killed; one that is not ends with 1 after a while. The ends of the children are
printed, a line each: an exit code, or minus a signal.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial

from fedstac import bootstrap
from fedstac.settings import Settings
from fedstac.workers import roles
from fedstac.workers.roles import Role
from tests.support.forked_children import run_each
from tests.support.forking import shared
from tests.support.places import REPOSITORY
from tests.support.waiting import PATIENCE

ROLES = {role.name: role for role in (roles.INDEX, roles.REPLICA)}


async def ends_of(settings: Settings, role: Role, *words: str) -> list[int]:
    """Run a process for each of the words; return how each ended."""
    process = await asyncio.create_subprocess_exec(
        *shared().program, "-m", "tests.support.consumer_process", role.name, *words, cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    changed = {name: getattr(settings, name) for name in settings.model_fields_set}
    stdout, _ = await process.communicate(json.dumps(changed, default=str).encode())
    return [int(line) for line in stdout.split(b"\n") if line.lstrip(b"-").isdigit()]


async def _work(settings: Settings, role: Role) -> None:
    stop = asyncio.Event()
    async with bootstrap.node(settings) as node, bootstrap.beside(node, role.parts(settings), stop):
        await asyncio.wait_for(stop.wait(), PATIENCE)


def main(name: str, *all_words: str) -> None:
    settings = Settings(**json.load(sys.stdin), _env_file=None)
    run_each(partial(_work, settings, ROLES[name]), all_words)


if __name__ == "__main__":
    main(*sys.argv[1:])
