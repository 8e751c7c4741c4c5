"""ESGF's publisher library (esgcet) at work, in its own environment: one action, by its own code.

`python esgf_publisher.py <action> <arguments as JSON>`; what is configured is what its esg.yaml configures. Its own
commands (`esgunpublish`, `esgadd`) are run as such by the test; these are the steps that `esgpublish` takes once it has
scanned files, which nothing here needs.
"""

import json
import sys

from esgcet.project.generic_pub import BasePublisher  # type: ignore[import-not-found]
from esgcet.stac.update_stac import ESGUpdateSTAC  # type: ignore[import-not-found]
from esgcet.util import settings  # type: ignore[import-not-found]

# What it takes from an esgvoc database that it would download: settings.py has this very line, commented out.
settings.STAC_schema_versions["CMIP6"] = "v3.0.4"


def main(action: str, arguments: str) -> None:
    options = json.loads(arguments)
    config = {
        "stac_config": options["stac_config"],
        "silent": False,
        "verbose": True,
        "dry_run": False,
        "save_stac": True,
    }
    if action == "publish":
        unused = (
            "index_node", "data_node", "data_roots", "globus", "replica", "proj", "json_file", "user_project_config",
            "verify", "mountpoints",
        )  # fmt: skip
        publisher = BasePublisher({**config, **dict.fromkeys(unused, ""), "enable_archive": False})
        publisher.update(options["records"])  # finds the latest version before this one, and supersedes it
        sys.exit(0 if publisher.index_pub(options["records"]) else 1)
    update = ESGUpdateSTAC(config)
    if action == "aggregation":
        update.collection = options["collection"]
        sys.exit(0 if update.update_assets(options["id"], options["asset"]) else 1)
    update.update_dataset(options["id"], options["changes"], set_latest=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
