"""Run a Python program that is not fedstac's as a child that ends with its parent: `-m fedstac.demo.program FILE …`."""

from __future__ import annotations

import runpy
import sys

from fedstac.settings import ProcessVariables
from fedstac.workers import processes


def main() -> None:
    """Run the program in this process; its arguments are those that follow its file."""
    processes.end_with_parent(ProcessVariables())
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
