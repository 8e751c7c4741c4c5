"""`make bench`: fedstac beside stock stac-fastapi-pgstac. Results on standard output, progress on standard error."""

from __future__ import annotations

import argparse
import os


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "benchmark",
        nargs="?",
        choices=(
            "write",
            "read",
            "search",
            "validate",
            "messaging",
            "race",
            "snapshots",
            "replica",
            "bulk_marks",
            "grants",
            "facet_rows",
        ),
        help="which; without: write, read and validate",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of a minute; its figures mean nothing")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the one to warm up; medians are reported")
    parser.add_argument(
        "--items", type=int, default=20_000, help="what `read` reads, `snapshots` loads, `bulk_marks` has"
    )
    parser.add_argument(
        "--workers", choices=("inside", "beside", "both"), default="both",
        help="publish workers inside the api process, in a process of their own, or one after the other",
    )  # fmt: skip
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=VALUE", help="a variable for fedstac: FEDSTAC_WORKERS=2"
    )
    parser.add_argument("--size", choices=("2k", "20k", "100k", "1m"), default="20k", help="of the corpus of `search`")
    parser.add_argument("--keep", action="store_true", help="of `search`: keep the results, and draw the plots again")
    parser.add_argument(
        "--alone", action="store_true",
        help="of `search`: without the peer, whose searches take minutes in a large catalogue",
    )  # fmt: skip
    parser.add_argument("--trials", type=int, default=200, help="of `race`")
    parser.add_argument(
        "--only", choices=("apply",), help="of `messaging`: nothing but an index node that begins with nothing"
    )
    parser.add_argument("--events", type=int, default=10_000, help="of `messaging`: in the log that is followed")
    parser.add_argument("--profile", action="store_true", help="of `messaging`: what an index node's time goes to")
    options = parser.parse_args()

    from benchmarks import (  # so that --help needs no database driver
        bulk_marks,
        facet_rows,
        grants,
        load,
        messaging,
        race,
        read,
        replica,
        report,
        search,
        servers,
        snapshots,
        validate,
        write,
    )
    from fedstac.workers import processes

    more = dict(setting.split("=", 1) for setting in options.setting)
    rounds = 0 if options.quick else options.rounds
    if options.benchmark == "race":
        race.run(trials=options.trials)
        return
    if options.benchmark == "bulk_marks":
        bulk_marks.run(count=2_000 if options.quick else options.items, seconds=5 if options.quick else 30)
        return
    if options.benchmark == "grants":
        grants.run(count=20_000 if options.quick else 1_000_000, checks=1_000 if options.quick else 20_000)
        return
    if options.benchmark == "facet_rows":
        facet_rows.run(quick=options.quick, rounds=rounds, more=more)
        return
    if options.benchmark == "replica":
        replica.run(quick=options.quick, rounds=rounds)
        return
    if options.benchmark == "messaging":
        processes.log_lines("auto", "bench")  # to standard error: the figures are alone on standard output
        only = messaging.Part(options.only) if options.only else None
        messaging.run(quick=options.quick, rounds=rounds, events=options.events, only=only, profile=options.profile)
        return
    if options.benchmark in (None, "validate"):
        validate.run(quick=options.quick, rounds=rounds)
    if options.benchmark == "validate":
        return
    servers.prepare_peer()
    report.line("machine", os.cpu_count() or 0, "cores", detail={"load_before": os.getloadavg()[0], "settings": more})
    for name, size in (("limit, 6 kB answers", 6000), ("limit, 600 kB answers", 600_000)):
        limit = load.limit(size, connections=8, seconds=0.3 if options.quick else 3)
        report.line(name, limit, "requests/s", detail={"what": "the load generator against a server that does nothing"})
    if options.benchmark == "snapshots":
        snapshots.run(count=2_000 if options.quick else options.items, rounds=rounds)
        return
    if options.benchmark == "search":
        search.run(
            size=options.size, quick=options.quick, rounds=max(1, rounds), more=more, keep=options.keep,
            alone=options.alone,
        )  # fmt: skip
        return
    if options.benchmark != "read":
        layouts = ("inside", "beside") if options.workers == "both" else (options.workers,)
        write.run(quick=options.quick, rounds=rounds, layouts=layouts, more=more)
    if options.benchmark != "write":
        read.run(quick=options.quick, rounds=rounds, count=options.items, more=more)


if __name__ == "__main__":
    main()
