"""What was read, kept between runs; and the files of this run, on disk since an archive has millions.

SQLite: each file is remembered at once, in one piece, so that a crash or kill loses those under way and no others. A
file is known by its resolved path, size and time of change; what a changed file said before is not used again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from fedstac.scan.values import Facts, ScanFile

FORMAT: Final = 2  # of the facts: what another fedstac wrote in another form is read anew
BATCH: Final = 500

# Temporary tables are SQLite's own to put away; journal_mode WAL would not do on network file systems. Without fsync
# only a crash of the machine can damage the file, and then it is removed and the files are read again.
SCHEMA: Final = """
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS facts (real TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, facts TEXT) WITHOUT ROWID;
CREATE TEMP TABLE listing (
    n INTEGER PRIMARY KEY, file TEXT NOT NULL, is_settled INTEGER NOT NULL DEFAULT 0,
    facts TEXT, dataset TEXT, folder TEXT, tracking TEXT, base TEXT, checksum TEXT
);
CREATE INDEX temp.by_dataset ON listing (dataset);
"""


class StateBroken(ValueError):
    """The state file cannot be used; the text says what to do."""


class MixedFolder(NamedTuple):
    """A folder with files of several datasets: a file of each of two of them, and the ids of all."""

    one: ScanFile
    other: ScanFile
    datasets: Sequence[str]


class SharedTrackingId(NamedTuple):
    """A tracking id, and two files that have it."""

    tracking_id: str
    one: ScanFile
    other: ScanFile


class ScanState:
    """One run over one state file; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=30)
            (format,) = self._db.execute("PRAGMA user_version").fetchone()
            if format not in (0, FORMAT):
                self._db.execute("DROP TABLE IF EXISTS facts")
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version = {FORMAT}")
        except (sqlite3.DatabaseError, OSError) as error:
            raise StateBroken(f"the state file {path} cannot be used ({error}); remove it, or name another") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise StateBroken(f"the state file {self._path} fails ({error}); remove it, or name another") from error

    # --- between runs ---

    def recall(self, file: ScanFile) -> Facts | None:
        """Return what was read of the file as it is now."""
        row = self._db.execute(
            "SELECT facts FROM facts WHERE real = ? AND size = ? AND mtime = ?", (file.real, file.size, file.mtime)
        ).fetchone()
        facts: Facts | None = json.loads(row[0]) if row else None
        return facts

    def remember(self, file: ScanFile, facts: Facts) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)",
            (file.real, file.size, file.mtime, json.dumps(facts)),
        )

    # --- this run ---

    def add(self, file: ScanFile) -> None:
        self._db.execute("INSERT INTO listing (file) VALUES (?)", (json.dumps(file.as_json()),))

    def unsettled(self) -> Iterator[tuple[int, ScanFile]]:
        """Yield the files that are not settled, in their order, each with its number; some may be settled meanwhile."""
        last = 0
        while rows := self._db.execute(
            "SELECT n, file FROM listing WHERE n > ? AND NOT is_settled ORDER BY n LIMIT ?", (last, BATCH)
        ).fetchall():
            for n, text in rows:
                yield n, ScanFile(**json.loads(text))
            last = rows[-1][0]

    def settle(self, n: int, file: ScanFile, facts: Facts, *, base: str, folder: str) -> None:
        """Store the facts of a file of the dataset `base`.

        All files of `folder` have to be of one dataset; empty: they need not.
        """
        self._db.execute(
            "UPDATE listing SET is_settled = 1, facts = ?, dataset = ?, folder = ?, tracking = ?, base = ?, "
            "checksum = ? WHERE n = ?",
            (
                json.dumps(facts), f"{base}.v{file.version}", folder, facts["attributes"]["tracking_id"].lower(), base,
                facts["sha256"] or file.checksum, n,
            ),
        )  # fmt: skip

    def refuse(self, n: int) -> None:
        """Note that a file is part of no dataset."""
        self._db.execute("UPDATE listing SET is_settled = 1 WHERE n = ?", (n,))

    def datasets(self) -> Iterator[tuple[str, list[tuple[ScanFile, Facts]]]]:
        """Yield each dataset's id, in order, with its files by path."""
        last = ""
        while row := self._db.execute("SELECT min(dataset) FROM listing WHERE dataset > ?", (last,)).fetchone():
            if row[0] is None:
                return
            last = row[0]
            rows = self._db.execute("SELECT file, facts FROM listing WHERE dataset = ?", (last,)).fetchall()
            files = [(ScanFile(**json.loads(text)), json.loads(facts)) for text, facts in rows]
            yield last, sorted(files, key=lambda file: file[0].local)

    def mixed_folders(self) -> list[MixedFolder]:
        """Return the folders that should hold one dataset and hold several."""
        rows = self._db.execute(
            "SELECT folder FROM listing WHERE folder != '' GROUP BY folder HAVING count(DISTINCT dataset) > 1"
        ).fetchall()
        mixed: list[MixedFolder] = []
        for (folder,) in rows:
            ones = self._db.execute(
                "SELECT dataset, file, min(n) FROM listing WHERE folder = ? GROUP BY dataset ORDER BY min(n)",
                (folder,),
            ).fetchall()
            first, second = (ScanFile(**json.loads(text)) for _, text, _ in ones[:2])
            mixed.append(MixedFolder(first, second, [dataset for dataset, _, _ in ones]))
        return mixed

    def shared_tracking_ids(self) -> list[SharedTrackingId]:
        """Return the tracking ids that different files have. An unchanged file may be in several versions."""
        rows = self._db.execute(
            "SELECT tracking, min(n), max(n) FROM listing WHERE tracking IS NOT NULL GROUP BY tracking "
            "HAVING count(DISTINCT checksum) > 1 OR count(DISTINCT base) > 1 OR count(*) > count(DISTINCT dataset) "
            "ORDER BY min(n)"
        ).fetchall()
        return [SharedTrackingId(tracking, self._file(first), self._file(last)) for tracking, first, last in rows]

    def _file(self, n: int) -> ScanFile:
        (text,) = self._db.execute("SELECT file FROM listing WHERE n = ?", (n,)).fetchone()
        return ScanFile(**json.loads(text))
