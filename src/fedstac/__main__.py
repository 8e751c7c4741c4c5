"""`fedstac` and `python -m fedstac`: the command line. Ctrl-C is answered while it is still being loaded, too."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Run a command."""
    try:
        from fedstac import cli
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(INTERRUPTED)
    cli.main()


if __name__ == "__main__":
    main()
