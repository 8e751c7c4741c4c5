from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from decimal import Decimal

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedstac.domain import strict_json
from fedstac.domain.errors import Finding, MalformedJson

FAR_FROM_QUADRATIC = 5.0  # seconds of processor time; a quadratic reader takes minutes

# --- what is refused, and the place that is named ---


def findings_of(raw: bytes, **options: int) -> tuple[Finding, ...]:
    with pytest.raises(MalformedJson) as refusal:
        strict_json.parse(raw, **options)
    assert refusal.value.findings[0].message in refusal.value.detail
    assert all(finding.suggestion for finding in refusal.value.findings)
    orjson.dumps([finding.as_json() for finding in refusal.value.findings])  # can be sent, whatever was in the keys
    return refusal.value.findings


REFUSED = [
    (b"", "json-empty", ""),
    (b" \r\n\t", "json-empty", ""),
    (b"\xef\xbb\xbf{}", "json-encoding", ""),
    ('{"a":1}'.encode("utf-16"), "json-encoding", ""),
    (b'{"a":"\xff"}', "json-encoding", ""),
    (b'{"a":"\xed\xa0\x80"}', "json-encoding", ""),
    (b'{"a":1,}', "json-syntax", ""),
    (b"{'a':1}", "json-syntax", ""),
    (b'{"a":01}', "json-syntax", ""),
    (b'{"a":.5}', "json-syntax", ""),
    (b'{"a":1} {"b":2}', "json-syntax", ""),
    (b'{"a":"\x00"}', "json-syntax", ""),
    (b'{"a":"\n"}', "json-syntax", ""),
    (b'{"a":"unfinished', "json-syntax", ""),
    (b'{"a":[1,NaN]}', "json-number", "/a/1"),
    (b'{"a":-Infinity}', "json-number", "/a"),
    (b'{"a":1e400}', "json-number", "/a"),
    (b"[1e-400]", "json-number", "/0"),
    (b"[9007199254740993]", "json-number", "/0"),
    (b"[-9007199254740993]", "json-number", "/0"),
    (b"[9007199254740994]", "json-number", "/0"),
    (b"[18446744073709551616]", "json-number", "/0"),
    (b"[9007199254740993.0]", "json-number", "/0"),
    (b"[0.1000000000000000000001]", "json-number", "/0"),
    (b"[4.9e-324]", "json-number", "/0"),
    (b'{"a":1,"b":2,"a":3}', "json-duplicate-key", "/a"),
    (b'{"x":[{"a" :1,"a":2}]}', "json-duplicate-key", "/x/0/a"),
    (b'{"a":1,"\\u0061":2}', "json-duplicate-key", "/a"),
    (b'{"a/~b":1,"a/~b":2}', "json-duplicate-key", "/a~1~0b"),
    (b'{"a":["\\u0000"]}', "json-nul", "/a/0"),
    (b'{"a":{"x\\u0000":1}}', "json-nul", "/a/x\\u0000"),
    (b'{"a":"\\ud800"}', "json-surrogate", "/a"),
    (b'{"\\udc00":1}', "json-surrogate", "/\\udc00"),
]


@pytest.mark.parametrize(("raw", "rule", "pointer"), REFUSED)
def test_refused_with_its_place(raw: bytes, rule: str, pointer: str) -> None:
    assert [(finding.rule, finding.pointer) for finding in findings_of(raw)] == [(rule, pointer)]


def test_a_fault_of_syntax_has_line_and_column() -> None:
    assert findings_of(b'{\n  "a": 1,\n  "b": tru\n}')[0].message.startswith("line 3, column 8: not JSON: ")


def test_bytes_that_are_not_utf8_have_line_and_column() -> None:
    assert findings_of('{"é":\n "'.encode() + b'\xff"}')[0].message.startswith("line 2, column 3: not UTF-8")


def test_all_faults_are_told_at_once_in_the_order_of_the_document() -> None:
    raw = b'{"a":NaN,"b":{"c":1,"c":2},"d":["x\\u0000",9007199254740993],"e":"\\ud800"}'
    assert [finding.pointer for finding in findings_of(raw)] == ["/a", "/b/c", "/d/0", "/d/1", "/e"]


def test_findings_are_bounded() -> None:
    assert len(findings_of(b"[" + b",".join([b"NaN"] * 10_000) + b"]")) == 50


@pytest.mark.parametrize("levels", [65, 70, 300, 1_000, 1_024, 2_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("finished", [True, False])
def test_deep_nesting_is_refused_quickly(levels: int, opening: bytes, closing: bytes, finished: bool) -> None:
    start = time.process_time()
    (finding,) = findings_of(opening * levels + b"1" + closing * levels * finished)
    assert time.process_time() - start < FAR_FROM_QUADRATIC
    assert finding.rule == "json-depth" or (finding.rule == "json-syntax" and not finished)


def test_the_deepest_level_allowed_is_max_depth() -> None:
    nested: object = json.loads("[" * 64 + "]" * 64)
    assert strict_json.parse(b"[" * 64 + b"]" * 64) == nested
    assert findings_of(b"[" * 65 + b"]" * 65)[0].pointer == "/0" * 64
    assert strict_json.parse(b'{"a":[1]}', max_depth=2) == {"a": [1]}
    assert findings_of(b'{"a":[[1]]}', max_depth=2)[0].pointer == "/a/0"


def test_the_place_of_very_deep_nesting_is_not_confused_by_brackets_in_strings() -> None:
    (finding,) = findings_of(b'["[[[\\"[[",\n' + b"[" * 5_000)
    assert finding.message.startswith("line 2, column 64: nested deeper than 64 levels")


@pytest.mark.parametrize("literal", ["1" * 1_000_000, "0." + "1" * 1_000_000, "1e" + "9" * 1_000_000])
def test_a_very_long_number_is_refused_quickly_and_shown_short(literal: str) -> None:
    start = time.process_time()
    (finding,) = findings_of(f"[{literal}]".encode())
    assert time.process_time() - start < FAR_FROM_QUADRATIC
    assert len(finding.message) < 200


# --- what is accepted, and how it is normalised ---

NORMALISED = [
    ("1.0", "1"),
    ("-180.0", "-180"),
    ("1E3", "1000"),
    ("-0.0", "0"),
    ("-0", "0"),
    ("0e99999999999999999999", "0"),
    ("9007199254740992", "9007199254740992"),
    ("9007199254740992.0", "9007199254740992"),
    ("9007199254740994.0", "9007199254740994.0"),
    ("1e20", "1e20"),
    ("1e300", "1e300"),
    ("1.10", "1.1"),
    ("179.06250000000000000000", "179.0625"),
    ("0.1000000000000000055511151231257827021181583404541015625", "0.1"),
    ("0.10000000000000001", "0.1"),
    ("-179.99999999999997", "-179.99999999999997"),
    ("2.2250738585072014e-308", "2.2250738585072014e-308"),
    ("5e-324", "5e-324"),
]


@pytest.mark.parametrize(("literal", "normal"), NORMALISED)
@pytest.mark.parametrize("around", ["{}", "[{}]", '{{"a":{}}}', '{{"a" : [ {}\n]}}'])
def test_numbers_of_equal_value_become_equal_text(literal: str, normal: str, around: str) -> None:
    value = strict_json.parse(around.format(literal).encode())
    assert orjson.dumps(value) == orjson.dumps(orjson.loads(around.format(normal)))


@pytest.mark.parametrize(
    "text", ['"a\\":b"', '"1e-400 12345678901234567890"', '"\\\\u0000"', '"e\u0301"', '"\\ud83d\\ude00"']
)
def test_strings_are_left_as_they_are(text: str) -> None:
    for raw in (text, f'{{"k" : {text}, "other": 0.0}}'):
        assert strict_json.parse(raw.encode()) == json.loads(raw)


# --- properties ---

strings = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6) | st.sampled_from(
    ['":', '" :', "12345678901234567890", "1e-400", "\\u0000", "\\", ' : "', "a1234567890123456e"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-400, 400).map(float)
    | strings
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(strings, inner), max_leaves=25)


def compact(value: object) -> str:
    return orjson.dumps(value).decode()


WRITERS: list[Callable[[object], str]] = [
    compact,
    json.dumps,
    lambda value: json.dumps(value, ensure_ascii=False),
    lambda value: json.dumps(value, indent=1, separators=(" ,", "\t: ")),
    lambda value: orjson.dumps(value, option=orjson.OPT_INDENT_2).decode(),
]
writers = st.sampled_from(WRITERS)


@given(value=values, write=writers)
def test_agrees_with_the_standard_library_on_sound_documents(value: object, write: Callable[[object], str]) -> None:
    text = write(value)
    parsed = strict_json.parse(text.encode())
    assert parsed == json.loads(text)
    assert orjson.loads(orjson.dumps(parsed)) == parsed
    assert not any(number.is_integer() and abs(number) <= 2**53 for number in floats_in(parsed))


def floats_in(value: object) -> list[float]:
    match value:
        case float():
            return [value]
        case dict():
            return [number for member in value.values() for number in floats_in(member)]
        case list():
            return [number for member in value for number in floats_in(member)]
        case _:
            return []


FAULTS = {
    "NaN": "json-number",
    "-Infinity": "json-number",
    "1e400": "json-number",
    "1e-400": "json-number",
    "0.00000000000000000000001e-310": "json-number",
    "9007199254740993": "json-number",
    "-9007199254740995": "json-number",
    "123456789012345678901234567890": "json-number",
    "1.00000000000000000001": "json-number",
    "9.000000000000001": "json-number",
    '"\\u0000"': "json-nul",
    '{"\\u0000":1}': "json-nul",
    '"\\ud800"': "json-surrogate",
    '{"twice":1,"twice":1}': "json-duplicate-key",
    '{"twice":1,"tw\\u0069ce" :1}': "json-duplicate-key",
    '{"twice"\t\n:1,"twice" :1}': "json-duplicate-key",
    "[" * 70 + "]" * 70: "json-depth",
    "[" * 2000 + "]" * 2000: "json-depth",
    "01": "json-syntax",
    "nul": "json-syntax",
    '"\t"': "json-syntax",
}
PLACE = "\U000f0000 here"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "around", ["{}", "[{}]", '{{"a":{}}}', '{{"a" : {}}}', '[0,{{"a":[{{"b":{},"c":0.0}}]}}]', '{{"a\\":":[1.50, {}]}}']
)
def test_a_fault_is_found_in_every_kind_of_place(fault: str, around: str) -> None:
    (finding,) = findings_of(around.format(fault).encode())
    assert finding.rule == FAULTS[fault]


@given(value=values, write=writers, fault=st.sampled_from(sorted(FAULTS)), data=st.data())
def test_a_planted_fault_is_found_whatever_its_place(
    value: object, write: Callable[[object], str], fault: str, data: st.DataObject
) -> None:
    pointer, planted = plant(value, data)
    text = write(planted)
    for written in (orjson.dumps(PLACE).decode(), json.dumps(PLACE)):
        text = text.replace(written, fault)
    assert fault in text
    (finding,) = findings_of(text.encode())
    assert finding.rule == FAULTS[fault]
    if not fault.startswith(("[", "{")) and finding.rule != "json-syntax":
        assert finding.pointer == pointer


def plant(value: object, data: st.DataObject) -> tuple[str, object]:
    """PLACE put somewhere into the value, and where."""
    if isinstance(value, list) and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value)))
        if at == len(value):
            return f"/{at}", [*value, PLACE]
        pointer, inside = plant(value[at], data)
        return f"/{at}{pointer}", [*value[:at], inside, *value[at + 1 :]]
    if isinstance(value, dict) and data.draw(st.booleans()):
        key = data.draw(st.sampled_from([*value, "new key"]))
        pointer, inside = plant(value[key], data) if key in value else ("", PLACE)
        token = key.replace("~", "~0").replace("/", "~1")
        return f"/{token}{pointer}", {**value, key: inside}
    return "", PLACE


@given(value=values, key=strings, first=values, second=values, escaped=st.booleans(), write=writers)
def test_keys_are_duplicates_however_they_are_written(
    value: object, key: str, first: object, second: object, escaped: bool, write: Callable[[object], str]
) -> None:
    again = "".join(f"\\u{unit:04x}" for unit in utf16_units(key)) if escaped else json.dumps(key)[1:-1]
    text = f'[{write(value)},{{{write(key)}:{write(first)},"{again}":{write(second)}}}]'
    token = key.replace("~", "~0").replace("/", "~1")
    assert [(f.rule, f.pointer) for f in findings_of(text.encode())] == [("json-duplicate-key", f"/1/{token}")]


def utf16_units(text: str) -> list[int]:
    raw = text.encode("utf-16-be")
    return [int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2)]


def oracle(text: str) -> bool:
    """Return whether the document is sound: said in the plainest way, without any of the module's shortcuts."""

    def pairs(members: list[tuple[str, object]]) -> object:
        assert len({key for key, _ in members}) == len(members)
        return dict(members)

    def whole(literal: str) -> int:
        assert abs(int(literal)) <= 2**53
        return int(literal)

    def decimal(literal: str) -> float:
        double = float(literal)
        assert math.isfinite(double)
        if double == 0:
            assert re.fullmatch(r"-?[0.]+([eE].*)?", literal)
        else:
            assert Decimal(literal) in (Decimal(repr(double)), Decimal(f"{double:.17g}"), Decimal(double))
        return double

    def constant(literal: str) -> object:
        raise AssertionError(literal)

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=whole, parse_float=decimal, parse_constant=constant)
        written = json.dumps(value, ensure_ascii=False)
        written.encode()
        return "\\u0000" not in re.sub(r"\\[^u]", "", written)
    except (AssertionError, ValueError):
        return False


digits = st.text("0123456789", max_size=20)
number_texts = st.builds(
    lambda sign, whole, fraction, exponent: sign + whole + fraction + exponent,
    st.sampled_from(["", "-"]),
    st.just("0") | st.builds(lambda first, rest: first + rest, st.sampled_from("123456789"), digits),
    st.just("") | st.builds(lambda zeros, rest: "." + "0" * zeros + rest + "0", st.integers(0, 25), digits),
    st.just("")
    | st.builds(
        lambda letter, sign, size: letter + sign + size,
        st.sampled_from("eE"),
        st.sampled_from(["", "+", "-"]),
        st.integers(0, 30).map(str) | st.integers(280, 340).map(str) | st.integers(0, 400).map(lambda n: f"{n:018}"),
    ),
)
near_doubles = st.builds(
    lambda double, form: form.format(double),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["{!r}", "{:.15g}", "{:.16g}", "{:.17g}", "{:.18g}", "{:.20f}"]),
)
string_texts = st.lists(
    st.sampled_from(
        [
            "a",
            '\\"',
            ":",
            " ",
            "\\u0061",
            "\\u0000",
            "\\\\",
            "\\\\u0000",
            "0",
            "1234567890123456",
            "e-400",
            "\\ud83d",
            "\\ude00",
            "é",
        ]
    ),
    max_size=4,
).map(lambda parts: f'"{"".join(parts)}"')
spaces = st.sampled_from(["", "", "", " ", "\n", " \t\r\n"])
texts = st.recursive(
    number_texts | near_doubles | string_texts | st.sampled_from(["null", "true", "NaN", "1.5", "0.0"]),
    lambda inner: (
        st.builds(lambda parts, space: f"[{(space + ',').join(parts)}]", st.lists(inner, max_size=4), spaces)
        | st.builds(
            lambda members: "{" + ",".join(f"{key}{space}:{value}" for key, space, value in members) + "}",
            st.lists(st.tuples(string_texts, spaces, inner), max_size=4),
        )
    ),
    max_leaves=12,
)


@given(text=texts)
@example('{"a" :1,"a":2}')
@example('{"\\":":1,"a":1,"a" :2}')
@example('{"\\":":1,"a":1,"a":2}')
@example("[0.0,1e-00000400]")
@example("[0.0,0.000001e-0321]")
@example('["a1234567890123456",1234567890123456]')
@example("[1e-1000000000000000]")
@example("[1.234567890123456e5,12.34567890123456789]")
def test_accepted_exactly_if_sound_so_no_shortcut_lets_a_fault_through(text: str) -> None:
    try:
        value = strict_json.parse(text.encode())
    except MalformedJson:
        assert not oracle(text)
    else:
        assert oracle(text)
        assert value == json.loads(text)


@given(raw=st.binary(max_size=30))
def test_any_bytes_are_refused_or_accepted_never_anything_else(raw: bytes) -> None:
    try:
        value = strict_json.parse(raw)
    except MalformedJson:
        return
    assert value == json.loads(raw)


# --- lines ---


def test_lines_give_a_value_each_and_blank_ones_are_skipped() -> None:
    assert strict_json.parse_lines(b'{"a":1.0}\r\n\n  \n[2]\n') == [{"a": 1}, [2]]


def test_a_geojson_text_sequence_is_taken_and_its_records_may_span_lines() -> None:
    assert strict_json.parse_lines(b'\x1e{"a":1}\n\x1e{"b":\n2}\n') == [{"a": 1}, {"b": 2}]
    *_, refused = strict_json.parse_lines(b'\x1e{"a":1}\n\x1e{"b":\n2}\n\x1e{]\n')
    assert isinstance(refused, MalformedJson)
    assert refused.detail.startswith("line 4, column 2: not JSON")


def test_a_line_that_is_not_json_refuses_itself_and_names_its_place() -> None:
    raw = b'{"a":1}\n\n{"b":NaN}\n{"c":1,,}\n{"d":1,"d":2}\n{"e":"\xff"}\n{"f":1}\n{"g":'
    values = strict_json.parse_lines(raw)
    refused = [value for value in values if isinstance(value, MalformedJson)]
    assert [value for value in values if value not in refused] == [{"a": 1}, {"f": 1}]
    found = [(finding.pointer, finding.message.partition(":")[0]) for each in refused for finding in each.findings]
    assert found == [
        ("/b", "line 3"), ("", "line 4, column 8"), ("/d", "line 5"), ("", "line 6, column 7"),
        ("", "line 8, column 6"),
    ]  # fmt: skip


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"\x1e", b"\x1e\n\x1e\n"])
def test_no_line_at_all_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedJson, match="the body is empty"):
        strict_json.parse_lines(raw)


def test_no_more_lines_are_read_than_are_asked_for() -> None:
    assert len(strict_json.parse_lines(b"NaN\n" * 100_000, most=50)) == 50


@given(records=st.lists(values, min_size=1, max_size=5), sequence=st.booleans())
def test_lines_are_read_as_each_record_is(records: list[object], sequence: bool) -> None:
    raw = b"".join((b"\x1e" if sequence else b"") + orjson.dumps(record) + b"\n" for record in records)
    assert strict_json.parse_lines(raw) == [strict_json.parse(orjson.dumps(record)) for record in records]
