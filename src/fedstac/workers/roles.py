"""What runs beside the API of which kind of node."""

from __future__ import annotations

from functools import partial

from fedstac.bootstrap import Part
from fedstac.settings import Settings
from fedstac.workers import index_node, notifier, publisher, sequencer

PUBLISHER = Part("publisher", publisher.run)
SEQUENCER = Part("sequencer", sequencer.run)
NOTIFIER = Part("notifier", notifier.run)


def following(settings: Settings) -> tuple[Part, ...]:
    """What runs inside the api process of an index node: a follower of each source, and housekeeping."""
    sources = index_node.sources(settings)
    followers = [
        Part(name, partial(index_node.follow, source=source, name=name))
        for n, source in enumerate(sources, 1)
        if (name := "follower" if n == 1 else f"follower {n}")
    ]
    return (*followers, Part("housekeeping", index_node.keep_house))


def publishing(settings: Settings) -> tuple[Part, ...]:
    """What runs inside the api process of a publishing node, unless processes of their own do it."""
    notifier.check(settings)
    return (*([PUBLISHER] * settings.workers), SEQUENCER, NOTIFIER) if settings.run_workers else ()
