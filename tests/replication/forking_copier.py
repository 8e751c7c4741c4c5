"""A process that copies files in children, which a test kills: `python -m tests.replication.forking_copier`.

Each line of standard input is an order as JSON. A child is forked for it; its id is written, and its status at its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from fedstac.replication.addresses import AddressRules
from fedstac.replication.copying import CopyOrder, copy_file
from fedstac.replication.transports import Transports


async def copy(order: CopyOrder, block_bytes: int) -> None:
    async with Transports(lambda: AddressRules(("127.0.0.1",))) as transports:
        await copy_file(order, transports=transports, block_bytes=block_bytes)


def main() -> None:
    for line in sys.stdin:
        fields = json.loads(line)
        block_bytes = fields.pop("block_bytes")
        child = os.fork()
        if not child:
            asyncio.run(copy(CopyOrder(**{**fields, "folder": Path(fields["folder"])}), block_bytes))
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
