"""Make .venv-readers: programs of others that read our events, with their pinned packages.

hexkit and ghga-event-schemas (overview, resource), the SDK of CloudEvents, and WMO's pywis-pubsub (wis2).
tests/messaging/test_readers.py runs them. They are no packages of our own lock: hexkit wants other versions.

`make test` runs this, as tools/esgf_publisher.py. It takes 100 MB, and some 10 s on two cores.
"""

from __future__ import annotations

import sys

from environment import Environment

READERS = Environment(
    folder=".venv-readers",
    lock="tests/messaging/readers-requirements.lock",
    requirements="hexkit[akafka]==9.0.3\nghga-event-schemas==3.1.0\ncloudevents==2.2.0\npywis-pubsub==0.12.0\n",
    subject="Programs that read events",
    size="100 MB, half a minute",
    script="event_readers.py",
)

if __name__ == "__main__":
    sys.exit(READERS.main())
