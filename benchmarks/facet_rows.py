"""What the rows of the columns cost a publication: one node writes them, the other one does not, in turn."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks import load, report, servers
from benchmarks.servers import say
from benchmarks.write import Supply, fedstac_batches, fedstac_singles, ndjson

WITHOUT = (str(Path(__file__).with_name("without_facet_rows.py")),)
MOST_LOSS = 0.08  # of the rate: the limit


def run(*, quick: bool, rounds: int, more: Mapping[str, str]) -> None:
    """Publish the same items to both nodes, in batches and one by one; print rates and processor time of both."""
    scale = 20 if quick else 1
    works = {"batches of 500": fedstac_batches(ndjson, 500, 4000 // scale, 2), "single": fedstac_singles(2000 // scale)}
    measured: defaultdict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with ExitStack() as stack:
        running, folder = stack.enter_context(servers.cluster())
        nodes = {
            "with": stack.enter_context(servers.fedstac(running, folder, "with_rows", more=more)),
            "without": stack.enter_context(
                servers.fedstac(
                    running, folder, "without_rows", more={**more, "FEDSTAC_COLUMNS": "false"}, program=WITHOUT
                )
            ),
        }
        supplies = {which: Supply() for which in nodes}
        for number, name in itertools.product(range(rounds + 1), works):
            for which in sorted(nodes, reverse=number % 2 == 1):
                nodes[which].settle()
                result = works[name](nodes[which], supplies[which])
                say(
                    f"round {number or 'to warm up'}: {name}, {which}: "
                    + ", ".join(f"{k} {v:.0f}" for k, v in result.items())
                )
                if number or quick:
                    measured[which, name].append(result)
    for name in works:
        for what, unit in (("rate", "items/s"), ("cpu_us", "us/item")):
            values = {which: load.middle(each[what] for each in measured[which, name]) for which in nodes}
            loss = 1 - values["with"] / values["without"] if what == "rate" else 1 - values["without"] / values["with"]
            report.line(
                f"publish with rows of the columns, {name}", values["with"], unit, values["without"],
                peer_name="the same without these rows",
                detail={"loss_percent": round(100 * loss, 1), "limit_percent": 100 * MOST_LOSS,
                        **{which: [round(each[what]) for each in measured[which, name]] for which in nodes}},
            )  # fmt: skip
