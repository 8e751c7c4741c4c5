"""What runs beside the API of which kind of node."""

from __future__ import annotations

from fedstac.bootstrap import Background
from fedstac.settings import Settings
from fedstac.workers import index_node, notifier, publisher, sequencer

INDEX: tuple[Background, ...] = (index_node.run,)


def publishing(settings: Settings) -> tuple[Background, ...]:
    """What runs inside the api process of a publishing node, unless processes of their own do it."""
    notifier.check(settings)
    return (*([publisher.run] * settings.workers), sequencer.run, notifier.run) if settings.run_workers else ()
