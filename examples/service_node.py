"""A service that takes part in deletions: it keeps a page for each dataset, and takes it away when that is marked.

    FEDSTAC_URL=https://west.example FEDSTAC_TOKEN=fst_… python service_node.py service.db pages/

It follows the feed from where it was, does its part, and reports until the node has the report. Kill it at any time.
"""

import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import httpx

TABLES = """CREATE TABLE IF NOT EXISTS place (cursor TEXT);
    CREATE TABLE IF NOT EXISTS part (mark TEXT PRIMARY KEY, page TEXT, outcome TEXT, comment TEXT, told TEXT);
    INSERT INTO place SELECT '0.0' WHERE NOT EXISTS (SELECT * FROM place)"""


def follow(node: httpx.Client, store: sqlite3.Connection, pages: Path) -> None:
    """Take the next events: pages, parts of deletions, and our place change together, or are done again."""
    [cursor] = store.execute("SELECT cursor FROM place").fetchone()
    answer = node.get("/events", params={"after": cursor, "wait": 2}).raise_for_status()
    with store:
        for event in answer.json():
            take(event, store, pages)
        store.execute("UPDATE place SET cursor = ?", [answer.headers["X-Cursor"]])


def take(event: dict[str, Any], store: sqlite3.Connection, pages: Path) -> None:
    """Write the page of a dataset that is there; note that the page of a marked one has to go."""
    if not event["type"].startswith("org.fedstac.dataset."):
        return
    data, page = event["data"], pages / event["subject"]
    if event["type"] == "org.fedstac.dataset.marked.v1":
        store.execute("INSERT OR IGNORE INTO part (mark, page) VALUES (?, ?)", [event["id"], str(page)])
    elif data["state"] == "published" and data.get("document"):
        store.execute("DELETE FROM part WHERE page = ?", [str(page)])  # the mark was taken back
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(json.dumps(data["document"]["properties"], indent=1))


def work(store: sqlite3.Connection) -> None:
    """Do our part of each deletion; what fails is tried again."""
    parts = store.execute("SELECT mark, page FROM part WHERE outcome IS NULL OR outcome = 'failed'").fetchall()
    for mark, page in parts:
        outcome, comment = "ok" if Path(page).exists() else "nothing to do", ""
        try:
            Path(page).unlink(missing_ok=True)
        except OSError as error:
            outcome, comment = "failed", error.strerror or "its page cannot be removed"
        with store:
            store.execute("UPDATE part SET outcome = ?, comment = ? WHERE mark = ?", [outcome, comment, mark])


def report(node: httpx.Client, store: sqlite3.Connection) -> None:
    """Tell the node what it does not know yet. The same report again does no harm."""
    query = "SELECT mark, outcome, comment FROM part WHERE told IS NOT outcome || comment LIMIT 1000"
    if news := store.execute(query).fetchall():
        reports = [{"event_id": mark, "outcome": outcome, "comment": comment} for mark, outcome, comment in news]
        node.post("/deletions/reports", json={"reports": reports}).raise_for_status()
        with store:
            store.executemany("UPDATE part SET told = ? WHERE mark = ?", [(o + c, mark) for mark, o, c in news])


def main(database: str, folder: str) -> None:
    store, token = sqlite3.connect(database), os.environ["FEDSTAC_TOKEN"]
    store.executescript(TABLES)
    with httpx.Client(base_url=os.environ["FEDSTAC_URL"], headers={"Authorization": f"Bearer {token}"}) as node:
        while True:
            try:
                follow(node, store, Path(folder))
                work(store)
                report(node, store)
            except httpx.HTTPError as error:
                print(f"{error}; trying again", file=sys.stderr)
                time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
