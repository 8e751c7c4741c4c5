"""A search service: full text over all datasets, in SQLite.

    FEDSTAC_URL=https://west.example FEDSTAC_TOKEN=fst_… python search_service.py search.db
    python search_service.py search.db NCAR historical tas

The node keeps our place in its log, and writes each event as a resource for searches. Kill the service at any time.
Its token has no role: we get what everybody may have, and so may show it to everybody.
"""

import os
import sqlite3
import sys
import time
from collections.abc import Iterator

import httpx

NAME = "search"
WANTED = {"delivery": "pull", "format": "resource", "filter": {}}
TABLES = """CREATE TABLE IF NOT EXISTS dataset (number INTEGER PRIMARY KEY, accession TEXT UNIQUE);
    CREATE VIRTUAL TABLE IF NOT EXISTS content USING fts5 (words)"""


def follow(node: httpx.Client, store: sqlite3.Connection) -> None:
    """Take the next events. Our place moves once they are stored; they may come again, which does no harm."""
    page = node.get(f"/subscriptions/{NAME}/next", params={"wait": 2, "lease": 10}).raise_for_status().json()
    with store:
        for each in page["events"]:
            take(each["headers"]["ce-type"], each["value"], store)
    if page["events"]:
        place = {"cursor": page["cursor"], "lease": page["lease"]}
        node.post(f"/subscriptions/{NAME}/ack", json=place).raise_for_status()


def take(event_type: str, resource: dict[str, object], store: sqlite3.Connection) -> None:
    """Index the words of a dataset anew, or forget the dataset."""
    accession = resource["accession"]
    store.execute("DELETE FROM content WHERE rowid = (SELECT number FROM dataset WHERE accession = ?)", [accession])
    store.execute("DELETE FROM dataset WHERE accession = ?", [accession])
    if event_type == "searchable_resource_upserted":
        words = " ".join(texts(resource["content"]))
        number = store.execute("INSERT INTO dataset (accession) VALUES (?)", [accession]).lastrowid
        store.execute("INSERT INTO content (rowid, words) VALUES (?, ?)", [number, words])


def texts(value: object) -> Iterator[str]:
    """Yield the texts in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def search(store: sqlite3.Connection, words: list[str]) -> list[str]:
    """Return the accessions of the datasets that have all these words, the best first."""
    query = " ".join('"' + word.replace('"', '""') + '"' for word in words)
    statement = "SELECT accession FROM content (?) c JOIN dataset d ON d.number = c.rowid ORDER BY c.rank"
    return [accession for [accession] in store.execute(statement, [query])]


def main(database: str, *words: str) -> None:
    store = sqlite3.connect(database)
    store.executescript(TABLES)
    if words:
        print(*search(store, list(words)), sep="\n")
        return
    headers = {"Authorization": f"Bearer {os.environ['FEDSTAC_TOKEN']}"}
    with httpx.Client(base_url=os.environ["FEDSTAC_URL"], headers=headers) as node:
        while True:
            try:
                node.put(f"/subscriptions/{NAME}", json=WANTED).raise_for_status()
                if not store.execute("SELECT 1 FROM dataset LIMIT 1").fetchone():  # a new database has nothing yet
                    node.post(f"/subscriptions/{NAME}/seek", json={"cursor": "start"}).raise_for_status()
                while True:
                    follow(node, store)
            except httpx.HTTPError as error:
                print(f"{error}; trying again", file=sys.stderr)
                time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
