"""Nodes with policies, and callers of every kind."""

from tests.api.conftest import api as api
from tests.api.conftest import start_api as start_api
from tests.client.conftest import fedstac as fedstac
