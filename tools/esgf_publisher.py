"""Make .venv-esgcet: ESGF's publisher (esgcet) and models of its events (esgf-core-utils) with their pinned packages.

tests/scenarios/test_esgf_publisher.py and tests/messaging/test_esgf_consumer.py run them.

`make test` runs this. It does nothing if the environment is there with the packages of the lock. If packages cannot be
fetched, it says so, and that test is skipped; with CI set, it fails. `--lock` pins the packages anew (needs uv).

It takes 620 MB, and some 40 s on two cores. `import esgcet` imports scipy, pandas, duckdb, numpy, numcodecs and
netCDF4: nine tenths of that. The rest (pyproj, shapely, fastparquet, …; 100 MB, 5 s) is installed too, so that the test
runs what `pip install esgcet` gives to anybody. Bytecode is made when it is first used.
"""

from __future__ import annotations

import sys

from environment import Environment

ESGF = Environment(
    folder=".venv-esgcet",
    lock="tests/scenarios/esgcet-requirements.lock",
    requirements="esgcet==5.5.3\npandas<3\nesgf-core-utils==1.0.6\nconfluent-kafka==2.16.1\n",
    subject="ESGF's publisher and models",
    size="620 MB, a minute",
    script="esgf_publisher.py",
)

if __name__ == "__main__":
    sys.exit(ESGF.main())
