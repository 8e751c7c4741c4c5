"""What a document is, and its digests (docs/adr/0002)."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedstac.demo import sample
from fedstac.domain import documents, strict_json
from fedstac.domain.vocabulary import DatasetName

Json = dict[str, Any]
NAME = DatasetName("CMIP6/x", 20200101)
LINK = {"rel": "cite-as", "href": "https://example.org/"}


def item(**members: Any) -> Json:
    [made] = sample.items(1)
    return {**made, **members}


def with_properties(**properties: Any) -> Json:
    made = item()
    return {**made, "properties": {**made["properties"], **properties}}


def digest(document: Json) -> bytes:
    return documents.prepare(document, NAME, None).document_digest


def parsed(text: str) -> Json:
    value = strict_json.parse(text.encode())
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    ("one", "other"),
    [("-180.0", "-180"), ("1.10", "1.1"), ("1e3", "1000"), ("1E+3", "1000.000"), ("-0.0", "0"), ("0.5e0", "0.50")],
)
def test_numbers_that_are_equal_make_equal_documents(one: str, other: str) -> None:
    text = orjson.dumps(with_properties(x="@")).decode()
    first, second = (parsed(text.replace('"@"', number)) for number in (one, other))
    assert digest(first) == digest(second)
    assert documents.prepare(first, NAME, None).text == documents.prepare(second, NAME, None).text


@pytest.mark.parametrize(
    ("one", "other"),
    [("é", "e\u0301"), ("Å", "\u212b"), ("a", "A"), ("a", "a "), ("", None), (1, "1"), (True, 1), ([], {}),
     ([1, 2], [2, 1])],
)  # fmt: skip
def test_values_that_differ_make_documents_that_differ(one: Any, other: Any) -> None:
    assert digest(with_properties(x=one)) != digest(with_properties(x=other))


def test_a_member_that_is_null_is_not_a_member_that_is_missing() -> None:
    assert digest(with_properties(x=None)) != digest(item())


def test_the_order_of_members_is_irrelevant() -> None:
    def reversed_members(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: reversed_members(value[name]) for name in reversed(value)}
        return [reversed_members(entry) for entry in value] if isinstance(value, list) else value

    assert digest(item()) == digest(reversed_members(item()))


def test_what_the_server_owns_is_irrelevant() -> None:
    plain = item()
    kept = {
        name: value for name, value in plain["properties"].items()
        if name not in ("latest", "retracted", "created", "updated")
    }  # fmt: skip
    own_links = [{"rel": rel, "href": "https://elsewhere.example/"} for rel in documents.SERVER_LINKS]
    for properties, links in (
        (kept, plain["links"]),
        ({**kept, "latest": False, "retracted": True, "created": "x", "updated": None}, plain["links"]),
        ({**kept, "fedstac:anything": {"a": 1}}, [*own_links, *plain["links"], *own_links]),
    ):
        assert digest({**plain, "properties": properties, "links": links}) == digest(plain)
    assert digest({**plain, "links": []}) != digest(plain)
    assert digest({**plain, "links": [*plain["links"], LINK]}) != digest(plain)


def test_a_document_is_not_changed_by_what_is_made_of_it() -> None:
    document = item()
    before = copy.deepcopy(document)
    documents.prepare(document, NAME, None)
    documents.warn_of_server_members(document)
    assert document == before


def test_what_a_publisher_says_of_the_servers_members_is_a_warning() -> None:
    document = with_properties(latest=False, retracted="yes", **{"fedstac:x": 1})
    assert {finding.pointer for finding in documents.warn_of_server_members(document)} == {
        "/properties/latest", "/properties/retracted", "/properties/fedstac:x"
    }  # fmt: skip
    assert documents.warn_of_server_members(item()) == ()


# --- files ---

FILE = {"href": "https://one.example/a.nc", "file:checksum": "1220aa", "file:size": 5, "cmip6:tracking_id": "hdl:1"}


def test_the_files_are_the_same_whatever_they_are_called_and_wherever_they_stand() -> None:
    other = {**FILE, "file:checksum": "1220bb"}
    wanted = documents.files_digest({"a": FILE, "b": other})
    moved = {**FILE, "href": "https://two.example/b.nc", "title": "x", "alternate": {"n": {"href": "y"}}, "roles": []}
    alike: tuple[dict[str, dict[str, object]], ...] = (
        {"b": other, "a": FILE}, {"x": FILE, "y": other}, {"a": moved, "b": other}, {"a": FILE, "b": other, "c": FILE},
        {"a": FILE, "b": other, "globus": {"href": "https://app.globus.org"}},
    )  # fmt: skip
    for assets in alike:
        assert documents.files_digest(assets) == wanted
    for assets in (
        {}, {"a": FILE}, {"a": FILE, "b": {**other, "file:size": 6}},
        {"a": FILE, "b": {**other, "file:checksum": "12"}},
        {"a": FILE, "b": {**other, "cmip6:tracking_id": "hdl:2"}}, {"a": FILE, "b": {"href": other["href"]}},
    ):  # fmt: skip
        assert documents.files_digest(assets) != wanted


# --- the stored text, and serving it ---

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab{}[]\"\\,:é", max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


@given(
    properties=st.dictionaries(st.text("abc:{}\"", max_size=5), JSON_VALUES, max_size=3),
    links=st.lists(st.sampled_from([LINK, {"rel": "self", "href": "x"}, {"rel": "]", "href": '"}]}'}]), max_size=3),
    extra=st.dictionaries(st.text("xyz", min_size=1, max_size=3), JSON_VALUES, max_size=2),
)  # fmt: skip
def test_serving_gives_the_document_back_with_the_servers_part(
    properties: Json, links: list[Json], extra: Json
) -> None:
    document = {**item(), **extra, "properties": properties, "links": links}
    kept = documents.without_server_members(document)
    text = orjson.dumps(kept).decode()
    assert text.startswith(documents.HEADS)
    assert text.endswith(documents.TAIL)
    own = '{"rel":"self","href":"here"}'
    served = orjson.loads(documents.splice(text, extension='"ours"', state='"latest":true', links=own))
    assert served.pop("stac_extensions") == [*document["stac_extensions"], "ours"]
    assert served["links"] == [{"rel": "self", "href": "here"}, *(link for link in links if link["rel"] != "self")]
    assert served["properties"] == {**properties, "latest": True}
    assert {k: v for k, v in served.items() if k not in ("links", "properties")} == {
        k: v for k, v in document.items() if k not in ("stac_extensions", "links", "properties")
    }


@given(JSON_VALUES)
def test_a_document_read_back_has_its_digest(value: Any) -> None:
    draft = documents.prepare(parsed(orjson.dumps(with_properties(x=value)).decode()), NAME, None)
    again = documents.prepare(parsed(draft.text), NAME, None)
    assert again.document_digest == draft.document_digest
    assert again.text == draft.text


@pytest.mark.parametrize(
    ("properties", "span"),
    [
        ({"datetime": "2000-01-01T00:00:00Z"}, ("2000-01-01T00:00:00Z", "2000-01-01T00:00:00Z")),
        (
            {"datetime": None, "start_datetime": "0001-01-01T00:00:00Z",
             "end_datetime": "9999-12-31T23:59:59.9999999Z"},
            ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"),
        ),
        (
            {"datetime": "2000-06-01T00:00:00Z", "start_datetime": "2000-01-01T00:00:00.123Z",
             "end_datetime": "2001-01-01T00:00:00Z"},
            ("2000-01-01T00:00:00.123Z", "2001-01-01T00:00:00Z"),
        ),
    ],
)  # fmt: skip
def test_the_time_that_is_searched(properties: Json, span: tuple[str, str]) -> None:
    search = documents.prepare({**item(), "properties": properties}, NAME, None).search
    assert (search.start, search.end) == span


def test_a_document_without_files_has_no_address_of_them_anywhere() -> None:
    """Assets, links of any relation that does not describe the dataset, alternates of links, members with an `href`."""
    file, place = "https://data.example/a.nc", "https://data.example/catalogue"
    licence = {"rel": "license", "href": "https://licence.example"}
    document = {
        "id": "thing",
        "properties": {"title": "a", "copy": file, "fedstac:state": "published", "tree": [{"href": place}]},
        "links": [
            licence, {"rel": "License", "href": file},
            {"rel": "about", "href": "x", "alternate": {"a": {"href": place}}},
            *({"rel": rel, "href": place} for rel in ("enclosure", "data", "item", "alternate", "via", "preview")),
        ],
        "assets": {"a": {"href": file, "alternate": {"east": {"href": place}}}}, "mirror": {"href": place}, "note": "b",
    }  # fmt: skip
    bare = documents.without_files(document)
    assert bare == {
        "id": "thing", "properties": {"title": "a", "fedstac:state": "published"}, "links": [licence], "assets": {},
        "note": "b",
    }  # fmt: skip
    assert list(bare) == [name for name in document if name != "mirror"], "in their order"
