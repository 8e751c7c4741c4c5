"""What the vocabularies cost: `python -m benchmarks.vocabulary` prints bytes, terms, seconds and resident memory.

Each line is a process of its own that reads and parses; the interpreter and what it imports is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

CV = Path(__file__).resolve().parents[1] / "cv"


def resident() -> float:
    """Return the megabytes of this process in memory."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def measure(paths: list[Path]) -> dict[str, float]:
    from fedstac.vocabularies.checker import shipped
    from fedstac.vocabularies.registry import Vocabularies

    snapshots = [snapshot for snapshot in shipped(CV) if CV / snapshot.project / f"{snapshot.version}.json" in paths]
    before, began = resident(), time.perf_counter()
    vocabularies = Vocabularies(snapshots)
    parsed_vocabularies = [vocabularies.at(snapshot.project, snapshot.version) for snapshot in snapshots]
    return {
        "bytes": sum(path.stat().st_size for path in paths),
        "terms": sum(len(terms) for one in parsed_vocabularies for terms in one.terms.values()),
        "seconds": round(time.perf_counter() - began, 4),
        "megabytes": round(resident() - before, 1),
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure([Path(path) for path in sys.argv[1:]])))
        return
    from fedstac.vocabularies.checker import shipped
    from fedstac.vocabularies.registry import Vocabularies

    vocabularies = Vocabularies(shipped(CV))
    every = [CV / snapshot.project / f"{snapshot.version}.json" for snapshot in vocabularies]
    newest = [CV / name / f"{vocabularies.of(name)[-1].version}.json" for name in vocabularies.projects()]
    for title, paths in (*((f"{path.parent.name} {path.stem}", [path]) for path in every), ("newest of each", newest)):
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.vocabulary", *map(str, paths)], check=True, capture_output=True
        )
        print(json.dumps({"what": title, **json.loads(ran.stdout)}))


if __name__ == "__main__":
    main()
