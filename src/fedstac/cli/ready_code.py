"""A search as code that runs elsewhere: Python with pystac-client, and curl. A token is read from the environment."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import orjson

LARGEST_PAGE = 10_000  # of one answer
PYTHON = '''\
"""A search with pystac-client (pip install pystac-client), as `fedstac search -o python` wrote it."""

import os

from pystac_client import Client

token = os.environ.get("FEDSTAC_TOKEN")
client = Client.open({url}, headers={{"Authorization": f"Bearer {{token}}"}} if token else {{}})
search = client.search(
{arguments})
for item in search.items():
    if item.properties.get("retracted"):
        retraction = item.properties.get("fedstac:retraction") or {{}}
        print(f"{{item.id}}: retracted: {{retraction.get('reason')}}")
        continue
    print(item.id)
    for asset in item.assets.values():
        print("   ", asset.href)
'''
CURL = """\
#!/bin/sh
# A search with curl, as `fedstac search -o curl` wrote it. The link "next" of the answer leads to more.
curl --silent --show-error --fail-with-body ${{FEDSTAC_TOKEN:+--oauth2-bearer "$FEDSTAC_TOKEN"}} \\
    --header 'Content-Type: application/json' \\
    --data-binary {body} \\
    {url}
"""


def python(url: str, body: Mapping[str, Any], limit: int | None) -> str:
    """Return a program that runs a search, given as the body of a POST, and lists what it finds."""
    arguments: dict[str, Any] = {"method": "POST"}
    for name in ("collections", "ids", "bbox", "datetime", "q"):
        if name in body:
            arguments[name] = body[name]
    if "sortby" in body:
        arguments["sortby"] = [f"{'-' if key['direction'] == 'desc' else '+'}{key['field']}" for key in body["sortby"]]
    if condition := _with_retracted(body.get("filter"), body.get("retracted")):
        arguments |= {"filter": condition, "filter_lang": "cql2-text"}
    arguments["max_items"] = limit
    lines = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    return PYTHON.format(url=repr(url), arguments=lines)


def _with_retracted(condition: str | None, retracted: str | None) -> str | None:
    """Return the filter by which other clients find what `retracted` asks for: one that names the property."""
    match retracted:
        case "include":
            condition_of_retracted = "retracted IN (TRUE, FALSE)"
        case "only":
            condition_of_retracted = "retracted = TRUE"
        case _:
            return condition
    return f"({condition}) AND {condition_of_retracted}" if condition else condition_of_retracted


def curl(url: str, body: Mapping[str, Any], limit: int | None) -> str:
    """Return a shell script that fetches the first page of a search, of up to 10 000 items."""
    whole = {**body, "limit": min(limit or LARGEST_PAGE, LARGEST_PAGE)}
    return CURL.format(url=shlex.quote(f"{url}/search"), body=shlex.quote(orjson.dumps(whole).decode()))
