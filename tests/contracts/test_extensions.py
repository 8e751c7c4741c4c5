"""Every extension folder is complete, compiles without fetching, and its examples are judged as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from fedstac import settings
from fedstac.domain.documents import EXTENSION_PATH
from fedstac.domain.model import State
from fedstac.vocabularies import extensions

FOLDER = settings.folder("extensions")
NAMES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*"))
HEADINGS = ("Title", "Identifier", "Field name prefix", "Scope", "Extension maturity classification", "Owner")


def examples(kind: str) -> list[Any]:
    return [
        pytest.param(name, path, id=f"{name}: {path.stem}")
        for name in NAMES
        for path in sorted((FOLDER / name / "examples").glob(f"{kind}-*.json"))
    ]


def places(name: str, path: Path) -> set[str]:
    """Return where the STAC core and the extension find faults."""
    parts = [{"$ref": extensions.CORE}, {"$ref": f"{extensions.HERE}/{name}/schema.json"}]
    judge = extensions.compiled({"allOf": parts}, FOLDER)
    errors = judge.iter_errors(json.loads(path.read_text()))
    return {"".join(f"/{step}" for step in error.instance_path) for error in errors}


def test_there_are_extensions() -> None:
    assert {"alternate-assets/v1.2.0", "fedstac/v1.0.0", "file/v2.1.0"} <= set(NAMES)
    assert f"/extensions/{NAMES[1]}/schema.json" == EXTENSION_PATH


@pytest.mark.parametrize("name", NAMES)
def test_every_extension_has_its_parts(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]+/v[0-9]+\.[0-9]+\.[0-9]+", name)
    readme = (FOLDER / name / "README.md").read_text()
    for heading in HEADINGS:
        assert f"- **{heading}:** " in readme
    for kind in ("valid", "invalid"):
        assert len(list((FOLDER / name / "examples").glob(f"{kind}-*.json"))) >= 3
    assert {path.name for path in (FOLDER / name).iterdir()} == {"README.md", "examples", "schema.json"}


@pytest.mark.parametrize("name", NAMES)
def test_every_member_is_documented(name: str) -> None:
    schema, readme = ((FOLDER / name / file).read_text() for file in ("schema.json", "README.md"))
    prefix = name.partition("/")[0].removesuffix("-assets")
    fields = set(re.findall(rf'"({prefix}:[a-z_]+)"', schema))
    assert fields
    assert not [field for field in fields if f"| `{field}` |" not in readme]


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_right_at_any_address(name: str) -> None:
    schema = extensions.shipped(FOLDER)[name]
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert schema["$id"] == "schema.json"
    jsonschema_rs.meta.validate(schema)
    schemas = [(f"https://node.example.org/stac/{name}/schema.json", schema), *extensions.core_schemas().items()]
    registry = jsonschema_rs.Registry(schemas, retriever=extensions.closed)
    judge = jsonschema_rs.validator_for({"$ref": schemas[0][0]}, registry=registry, retriever=extensions.closed)
    assert not judge.is_valid([])


def test_nothing_is_fetched() -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        extensions.compiled({"$ref": "https://stac-extensions.github.io/file/v2.1.0/schema.json"}, FOLDER)
    with pytest.raises(jsonschema_rs.ValidationError):
        extensions.item_validator(FOLDER / "nowhere")


@pytest.mark.parametrize(("name", "path"), examples("valid"))
def test_a_valid_example_passes(name: str, path: Path) -> None:
    assert places(name, path) == set()


@pytest.mark.parametrize(("name", "path"), examples("invalid"))
def test_an_invalid_example_is_wrong_where_it_says(name: str, path: Path) -> None:
    expected = json.loads((path.parent / "expected.json").read_text())
    assert places(name, path) == {expected[path.name]}


@pytest.mark.parametrize("name", NAMES)
def test_no_example_is_expected_that_is_not_there(name: str) -> None:
    folder = FOLDER / name / "examples"
    assert set(json.loads((folder / "expected.json").read_text())) == {
        path.name for path in folder.glob("invalid-*.json")
    }


def test_ours_has_every_state() -> None:
    schema = extensions.shipped(FOLDER)["fedstac/v1.0.0"]
    assert schema["definitions"]["state"]["enum"] == [state.value for state in State]


def test_the_wheel_has_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=FOLDER.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    here = {f"fedstac/extensions/{path.relative_to(FOLDER).as_posix()}" for path in FOLDER.rglob("*") if path.is_file()}
    assert here <= packed
    page = {f"fedstac/api/http/swagger_ui/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "LICENSE")}
    assert page | {"fedstac/api/examples.json"} <= packed
