"""Who a replica node is: at its origins it reads the feed and announces in its own name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedstac.client import service
from fedstac.client.transport import TokenSource
from fedstac.messaging.sources.addresses import SourceAddress, read_addresses
from fedstac.settings import Settings


def token_source(settings: Settings) -> TokenSource:
    """Return what gives this node's tokens. Misconfigured where the settings name no identity."""
    return service.token_source(
        token=settings.replica_token, issuer=settings.replica_issuer, client_id=settings.replica_client_id,
        client_secret=settings.replica_client_secret,
    )  # fmt: skip


def sources_of(settings: Settings) -> Sequence[SourceAddress]:
    """Return the sources that the settings name; without tokens for them, this node reads them by its own identity.

    SourcesUnclear or Misconfigured where the settings do not say it.
    """
    if settings.source_token:
        return read_addresses(settings.source, settings.source_token, feeds=settings.source_feed)
    token = token_source(settings)
    addresses = read_addresses(settings.source, None, feeds=settings.source_feed)
    return [replace(each, token_source=token) for each in addresses]
