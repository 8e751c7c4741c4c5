"""`make bench`: fedstac beside stock stac-fastapi-pgstac. Results on standard output, progress on standard error."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Final, NamedTuple

# A benchmark imports its own module when it runs, so that --help needs no database driver.
Options = argparse.Namespace


def _validate(options: Options) -> None:
    from benchmarks import validate

    validate.run(quick=options.quick, rounds=_rounds(options))


def _write(options: Options) -> None:
    from benchmarks import write

    layouts = ("inside", "beside") if options.workers == "both" else (options.workers,)
    write.run(quick=options.quick, rounds=_rounds(options), layouts=layouts, more=_more(options))


def _read(options: Options) -> None:
    from benchmarks import read

    read.run(quick=options.quick, rounds=_rounds(options), count=options.items, more=_more(options))


def _search(options: Options) -> None:
    from benchmarks import search

    search.run(
        size=options.size, quick=options.quick, rounds=max(1, _rounds(options)), more=_more(options),
        keep=options.keep, alone=options.alone,
    )  # fmt: skip


def _snapshots(options: Options) -> None:
    from benchmarks import snapshots

    snapshots.run(count=2_000 if options.quick else options.items, rounds=_rounds(options))


def _messaging(options: Options) -> None:
    from benchmarks import messaging
    from fedstac.workers import processes

    processes.log_lines("auto", "bench")  # to standard error: the figures are alone on standard output
    only = messaging.Part(options.only) if options.only else None
    messaging.run(
        quick=options.quick, rounds=_rounds(options), events=options.events, only=only, profile=options.profile
    )


def _race(options: Options) -> None:
    from benchmarks import race

    race.run(trials=options.trials)


def _replica(options: Options) -> None:
    from benchmarks import replica

    replica.run(quick=options.quick, rounds=_rounds(options))


def _bulk_marks(options: Options) -> None:
    from benchmarks import bulk_marks

    bulk_marks.run(count=2_000 if options.quick else options.items, seconds=5 if options.quick else 30)


def _grants(options: Options) -> None:
    from benchmarks import grants

    grants.run(count=20_000 if options.quick else 1_000_000, checks=1_000 if options.quick else 20_000)


def _facet_rows(options: Options) -> None:
    from benchmarks import facet_rows

    facet_rows.run(quick=options.quick, rounds=_rounds(options), more=_more(options))


class Benchmark(NamedTuple):
    """A benchmark. has_peer: beside the peer, whose environment is made first, and the load generator's own limit."""

    run: Callable[[Options], None]
    has_peer: bool = False


BENCHMARKS: Final = {
    "write": Benchmark(_write, has_peer=True),
    "read": Benchmark(_read, has_peer=True),
    "search": Benchmark(_search, has_peer=True),
    "validate": Benchmark(_validate),
    "messaging": Benchmark(_messaging),
    "race": Benchmark(_race),
    "snapshots": Benchmark(_snapshots, has_peer=True),
    "replica": Benchmark(_replica),
    "bulk_marks": Benchmark(_bulk_marks),
    "grants": Benchmark(_grants),
    "facet_rows": Benchmark(_facet_rows),
}
WITHOUT_NAME: Final = ("validate", "write", "read")  # what runs where none is named


def main() -> None:
    options = _parser().parse_args()
    benchmarks = [BENCHMARKS[name] for name in ([options.benchmark] if options.benchmark else WITHOUT_NAME)]
    for benchmark in (each for each in benchmarks if not each.has_peer):
        benchmark.run(options)
    with_peer = [each for each in benchmarks if each.has_peer]
    if with_peer:
        _prepare(options)
    for benchmark in with_peer:
        benchmark.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "benchmark", nargs="?", choices=tuple(BENCHMARKS), help="which; without: write, read and validate"
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
    return parser


def _rounds(options: Options) -> int:
    return 0 if options.quick else int(options.rounds)


def _more(options: Options) -> dict[str, str]:
    """Return the variables for fedstac."""
    return dict(setting.split("=", 1) for setting in options.setting)


def _prepare(options: Options) -> None:
    """Make the peer's environment, and print what the machine and the load generator can do."""
    from benchmarks import load, report, servers

    servers.prepare_peer()
    detail = {"load_before": os.getloadavg()[0], "settings": _more(options)}
    report.line("machine", os.cpu_count() or 0, "cores", detail=detail)
    for name, size in (("limit, 6 kB answers", 6000), ("limit, 600 kB answers", 600_000)):
        limit = load.limit(size, connections=8, seconds=0.3 if options.quick else 3)
        report.line(name, limit, "requests/s", detail={"what": "the load generator against a server that does nothing"})


if __name__ == "__main__":
    main()
