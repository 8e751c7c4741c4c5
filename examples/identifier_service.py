"""The owner of the identifiers: it registers each dataset's, and a deletion waits until it has done its part.

    FEDSTAC_URL=https://west.example FEDSTAC_TOKEN=fst_… python identifier_service.py identifiers.db

While a dataset is there its identifier leads to its page, and afterwards to a note that it is gone. The rules of the
project name this service as `owns_identifier: true`; its token has the role `node:identifiers`. Kill it at any time.
"""

import os
import sqlite3
import sys
import time
from typing import Any

import httpx

NAME = "identifiers"
WANTED = {"delivery": "pull", "format": "cloudevents", "filter": {}}
TABLES = "CREATE TABLE IF NOT EXISTS handle (pid TEXT PRIMARY KEY, dataset TEXT, target TEXT)"
NOTE = "https://handles.example/gone"  # where the identifiers of datasets lead that are not there any more


def follow(node: httpx.Client, store: sqlite3.Connection) -> None:
    """Take the next events. Our place moves once the reports have arrived; till then the events come again."""
    page = node.get(f"/subscriptions/{NAME}/next", params={"wait": 2, "lease": 10}).raise_for_status().json()
    events = [each["value"] for each in page["events"] if ".dataset." in each["type"]]
    with store:
        reports = [report for event in events if (report := take(event, store))]
    if reports:
        node.post("/deletions/reports", json={"reports": reports}).raise_for_status()
    if page["events"]:
        place = {"cursor": page["cursor"], "lease": page["lease"]}
        node.post(f"/subscriptions/{NAME}/ack", json=place).raise_for_status()


def take(event: dict[str, Any], store: sqlite3.Connection) -> dict[str, str] | None:
    """Let the identifier lead to the dataset, or to the note. Return our report, where a deletion may wait for it."""
    document, id = event["data"].get("document"), event["data"]["id"]
    if document and event["data"]["state"] not in ("marked", "quarantined"):
        if pid := document["properties"].get("cmip6:pid"):
            page = f"{os.environ['FEDSTAC_URL']}/collections/{event['data']['collection']}/items/{id}"
            store.execute("INSERT OR REPLACE INTO handle VALUES (?, ?, ?)", [pid, id, page])
        return None
    changed = store.execute("UPDATE handle SET target = ? WHERE dataset = ?", [NOTE, id]).rowcount
    mark = event["causationid"] if ".left." in event["type"] else event["id"]  # `left` stands for an event of the log
    return {"event_id": mark, "outcome": "ok" if changed else "nothing to do"}


def main(database: str) -> None:
    store, token = sqlite3.connect(database), os.environ["FEDSTAC_TOKEN"]
    store.execute(TABLES)
    with httpx.Client(base_url=os.environ["FEDSTAC_URL"], headers={"Authorization": f"Bearer {token}"}) as node:
        while True:
            try:
                node.put(f"/subscriptions/{NAME}", json=WANTED).raise_for_status()
                if not store.execute("SELECT 1 FROM handle LIMIT 1").fetchone():  # a new database has nothing yet
                    node.post(f"/subscriptions/{NAME}/seek", json={"cursor": "start"}).raise_for_status()
                while True:
                    follow(node, store)
            except httpx.HTTPError as error:
                print(f"{error}; trying again", file=sys.stderr)
                time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
