"""`fedstac vocab schema`."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from fedstac import settings
from fedstac.cli import app
from fedstac.domain.schemas import schema_of
from fedstac.vocabularies.checker import shipped
from fedstac.vocabularies.registry import Vocabularies


def test_it_prints_the_newest_or_the_version_that_is_named() -> None:
    vocabularies = Vocabularies(shipped(settings.folder("cv")))
    oldest = vocabularies.at("CMIP6", vocabularies.of("CMIP6")[0].version)
    newest = vocabularies.current("CMIP6")
    assert newest is not None
    assert json.loads(CliRunner().invoke(app, ["vocab", "schema", "CMIP6"]).stdout) == schema_of(newest)
    done = CliRunner().invoke(app, ["vocab", "schema", "CMIP6", oldest.version])
    assert json.loads(done.stdout) == schema_of(oldest) != schema_of(newest)


def test_a_version_that_is_not_here_is_not_found() -> None:
    done = CliRunner().invoke(app, ["vocab", "schema", "CMIP6", "1.0"])
    assert done.exit_code == 3
    assert done.stdout == ""
