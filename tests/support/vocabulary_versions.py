"""Two versions of CMIP6's vocabulary that differ in a model, and datasets of that model."""

from __future__ import annotations

import json
from typing import Any

from fedstac.demo import sample

Json = dict[str, Any]


OLD, NEW = "6.2.58.60", "6.2.60.0"


# Facts of CMIP6_CVs at these tags (CC BY 4.0): AWI-ESM-2-1-LR was taken out, E3SM-2-1 came in.
ONLY_OLD, ONLY_NEW = ("AWI.AWI-ESM-1-1-LR", "AWI-ESM-2-1-LR"), ("E3SM-Project.E3SM-1-0", "E3SM-2-1")


def of_model(pair: tuple[str, str]) -> Json:
    """Return a sample dataset of the first model, told of the second."""
    registered, other = pair
    found = next(item for item in sample.items(3000) if item["id"].startswith(f"CMIP6.CMIP.{registered}."))
    renamed: Json = json.loads(json.dumps(found).replace(registered.partition(".")[2], other))
    return renamed
