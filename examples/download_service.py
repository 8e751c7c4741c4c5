"""A download service: it has the files of each dataset, and hands out where they are.

    FEDSTAC_URL=https://west.example FEDSTAC_TOKEN=fst_… python download_service.py downloads.db 8090
    curl http://127.0.0.1:8090/CMIP6.CMIP.…

The node keeps our place in its log, and writes each event as an overview of the dataset. Kill the service at any time.
Its token has no role: we get what everybody may have, and so may hand it out to everybody.
"""

import json
import os
import sqlite3
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

NAME = "downloads"
WANTED = {"delivery": "pull", "format": "overview", "filter": {}}
TABLES = "CREATE TABLE IF NOT EXISTS dataset (accession TEXT PRIMARY KEY, overview TEXT)"


def follow(node: httpx.Client, store: sqlite3.Connection) -> None:
    """Take the next events. Our place moves once they are stored; they may come again, which does no harm."""
    page = node.get(f"/subscriptions/{NAME}/next", params={"wait": 2, "lease": 10}).raise_for_status().json()
    with store:
        for each in page["events"]:
            take(each["headers"]["ce-type"], each["value"], store)
    if page["events"]:
        place = {"cursor": page["cursor"], "lease": page["lease"]}
        node.post(f"/subscriptions/{NAME}/ack", json=place).raise_for_status()


def take(event_type: str, overview: dict[str, object], store: sqlite3.Connection) -> None:
    """Keep the newest overview of a dataset, or forget the dataset."""
    if event_type == "dataset_deleted":
        store.execute("DELETE FROM dataset WHERE accession = ?", [overview["accession"]])
    else:
        row = [overview["accession"], json.dumps(overview)]
        store.execute("INSERT OR REPLACE INTO dataset VALUES (?, ?)", row)


class Overviews(BaseHTTPRequestHandler):
    """GET /ACCESSION: the overview of a dataset with the addresses, sizes and checksums of its files."""

    database = ""

    def do_GET(self) -> None:
        with sqlite3.connect(self.database) as store:
            row = store.execute("SELECT overview FROM dataset WHERE accession = ?", [self.path[1:]]).fetchone()
        store.close()
        self.send_response(200 if row else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write((row[0] if row else "{}").encode())


def main(database: str, port: str) -> None:
    store, token = sqlite3.connect(database), os.environ["FEDSTAC_TOKEN"]
    store.execute(TABLES)
    Overviews.database = database
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Overviews)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with httpx.Client(base_url=os.environ["FEDSTAC_URL"], headers={"Authorization": f"Bearer {token}"}) as node:
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
