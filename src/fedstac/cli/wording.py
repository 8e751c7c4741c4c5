"""HTTP calls that the server's sentences name, in the words of the command line."""

from __future__ import annotations

import re
from typing import Final

# The first pattern that fits a call wins; tests/contracts finds calls that none fits.
COMMANDS: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(call), command)
    for call, command in (
        (r"POST /notifications, or fedstac notifications add\b", "fedstac notifications add"),
        (r"POST /notifications\b", "fedstac notifications add"),
        (r"GET /notifications\b", "fedstac notifications list"),
        (r"POST /requests/([^\s;,]+)/retry\b", r"fedstac requests retry \1"),
        (r"GET /requests\b", "fedstac requests list"),
        (r"GET /deletions\b(?!/)", "fedstac deletion list"),
        (r"GET /bulk\b", "fedstac bulk list"),
        (r"GET /grants\b(?!/)", "fedstac grant list"),
        (r"POST /bulk/([^\s;,/]+)/cancel\b", r"fedstac bulk cancel \1"),
        (r"at POST /collections/([^\s;,/]+)/reconcile\b", r"with fedstac reconcile --collection \1"),
        (r"POST …/reconcile\b", "fedstac reconcile"),
        (r"DELETE /collections/([^\s;,/]+)/cascade\b", r"fedstac collections cascade \1 --cancel"),
        (r"GET /collections/([^\s;,/]+)/queryables\b", r"fedstac collections show \1 --properties"),
        (r"GET /queryables\b", "fedstac collections show ID --properties"),
        (r"GET /aggregations\b", "fedstac facets"),
        (r"PUT /collections/([^\s;,]+)", r"fedstac collections update \1"),
        (r"POST /collections\b(?!/)", "fedstac collections create"),
        (r"GET /collections\b(?!/)", "fedstac collections list"),
        (r"change it with PUT /groups/([^\s;,]+)", r"see fedstac groups show \1"),
        (r"GET /groups\b", "fedstac groups list"),
        (r"GET /vocabularies\b", "fedstac vocab list"),
        (r"GET /snapshot\b", "fedstac rebuild --from snapshot"),
        (r"GET /search\?ids=", "fedstac search --ids"),
        (r"in the header Fedstac-Override\b", "with --override"),
        (r"log in and send the header `Authorization: Bearer <token>`", "set FEDSTAC_TOKEN, or run fedstac login"),
        (r"a year is written 2000-01-01T00:00:00Z/2000-12-31T23:59:59Z", "a year is written 2000"),
    )
)


def in_commands(sentence: str) -> str:
    """Return the sentence with each HTTP call replaced by the command that does the same."""
    for call, command in COMMANDS:
        sentence = call.sub(command, sentence)
    return sentence
