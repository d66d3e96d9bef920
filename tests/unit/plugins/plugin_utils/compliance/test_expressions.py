"""JMESPath, in which nothing that is unknown can pass."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.expressions import (
    FUNCTIONS,
    EvaluationError,
    ExpressionError,
    Missing,
    compile_expression,
    plain,
)
from hypothesis import given
from hypothesis import strategies as st

DOCUMENT: dict[str, Any] = {
    "now": "2026-11-23T12:00:00Z",
    "driver": {
        "loaded": "580.95.05",
        "branch": 580,
        "mismatch": False,
        "pin": None,
        "kernels": {"6.1": {"v": "1"}, "6.2": None},
    },
    "gpus": [
        {"id": "a", "lost": None, "ok": True, "width": 16},
        {"id": "b", "lost": "it fell off the bus", "ok": False, "width": 8},
    ],
    "empty": [],
    "words": ["x", "y"],
    "mixed": ["x", 1],
    "ecc": "not_applicable",
    "size": "12.5",
    "soon": "2026-11-23T12:04:59Z",
    "proven_at": "2026-11-22T12:00:00Z",
}


def value(text: str, document: Any = None) -> Any:
    return compile_expression(text).evaluate(DOCUMENT if document is None else document)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("driver.loaded", "580.95.05"),
        ("driver.pin", None),
        ("driver.branch >= `580`", True),
        ("driver.branch < `580`", False),
        ("driver.loaded == '580.95.05'", True),
        ("driver.loaded != '580.95.05'", False),
        ("driver.pin == `null`", True),
        ("`null` != driver.pin", False),
        ("driver.branch != `null`", True),
        ("driver.branch == `580.0`", True),
        ("!(driver.mismatch)", True),
        ("driver.mismatch || driver.branch > `1`", True),
        ("driver.mismatch && driver.nowhere", False),
        ("gpus[0].id", "a"),
        ("gpus[-1].id", "b"),
        ("gpus[*].id", ["a", "b"]),
        ("gpus[].width", [16, 8]),
        ("gpus[:1].id", ["a"]),
        ("gpus[?lost == `null`].id", ["a"]),
        ("gpus[?ok].id | [0]", "a"),
        ("gpus[*].[id, width]", [["a", 16], ["b", 8]]),
        ("gpus[*].{i: id}", [{"i": "a"}, {"i": "b"}]),
        ('driver.kernels."6.1".v', "1"),
        ("keys(driver.kernels)", ["6.1", "6.2"]),
        ("values(driver.kernels)", [{"v": "1"}, None]),
        ("all(map(&defined(@), values(driver.kernels)))", False),
        ('words == `["x", "y"]`', True),
        ('words != `["x"]`', True),
        ("defined(driver.loaded)", True),
        ("defined(driver.pin)", False),
        ("defined(driver.pin.version)", False),
        ("defined(nowhere.at.all)", False),
        ("defined(gpus[7].id)", False),
        ("all(gpus[*].ok)", False),
        ("any(gpus[*].ok)", True),
        ("all(empty)", False),
        ("any(empty)", False),
        ("length(empty)", 0),
        ("contains(words, 'x')", True),
        ("contains(words, 'z')", False),
        ("contains(driver.loaded, '95')", True),
        ("sum(gpus[*].width)", 24),
        ("max(gpus[*].width)", 16),
        ("min(words)", "x"),
        ("avg(gpus[*].width)", 12),
        ("join('+', words)", "x+y"),
        ("to_number(size)", 12.5),
        ("sort(words)", ["x", "y"]),
        ("abs(driver.branch)", 580),
        ("starts_with(driver.loaded, '580.')", True),
        ("ends_with(driver.loaded, '.05')", True),
        ("matches(driver.loaded, '[0-9.]+')", True),
        ("matches(driver.loaded, '[0-9]+')", False),
        ("age_hours(proven_at)", 24),
        ("age_hours(soon)", 0),
    ],
)
def test_what_is_known_has_the_value_that_jmespath_gives_it(text, expected):
    found = value(text)
    assert found == expected
    assert type(found) is type(expected) or not isinstance(expected, bool)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # Each of these is true, empty or zero in JMESPath as it is, so that a rule would pass.
        ("nowhere != 'nouveau'", "there is no `nowhere`"),
        ("driver.pin != 'nouveau'", 'null and "nouveau" cannot be compared'),
        ("driver.nowhere == `null`", "there is no `driver.nowhere`"),
        ("!nowhere", "there is no `nowhere`"),
        ("!(driver.pin)", "driver.pin is null, neither true nor false"),
        ("!ecc", "neither true nor false"),
        ("driver.pin.version == `null`", "driver.pin is null, not an object"),
        ("ecc.uncorrected == `null`", 'ecc is "not_applicable", not an object'),
        ("length(nowhere[?lost]) == `0`", "there is no `nowhere`"),
        ("length(gpus[?lost]) == `0`", "lost is null, neither true nor false"),
        ("length(driver.pin[?lost]) == `0`", "null stands where a list has to be"),
        ("length(ecc) == `0`", "is no list"),
        ("length(driver) > `0`", "is no list"),
        ("gpus[*].lost", "element 0 is null"),
        ("gpus[*].nowhere", "there is no `nowhere`"),
        ("driver.kernels.*", "element 1 is null"),
        ("driver.pin[*].x", "null stands where a list has to be"),
        ("ecc[]", "stands where a list has to be"),
        ("gpus.*", "not an object"),
        ("map(&lost, gpus)", "element 0 is null"),
        ("driver.branch != '580'", "cannot be compared"),
        ("mixed != words", "cannot be compared"),
        ("driver.mismatch == `0`", "cannot be compared"),
        ("driver.pin == driver.pin", "null and null cannot be compared"),
        ("driver.loaded > `1`", "not both numbers"),
        ("driver.pin < `1`", "not both numbers"),
        ("driver.mismatch < `1`", "not both numbers"),
        ("driver.branch && driver.mismatch", "driver.branch is 580, neither true nor false"),
        ("driver.mismatch || driver.pin", "driver.pin is null, neither true nor false"),
        ("!contains(words, driver.pin)", "null is no text or number or boolean"),
        ("!contains(words, `1`)", "the list holds text, not number alone"),
        ("!contains(mixed, 'z')", "not text alone"),
        ("!contains(driver.loaded, `1`)", "cannot be in a text"),
        ("all(words)", "neither true nor false"),
        ("any(gpus[*].width)", "neither true nor false"),
        ("max(empty)", "the list is empty"),
        ("max(mixed)", "alone"),
        ("avg(empty)", "the list is empty"),
        ("gpus[7].id", "the list has 2 elements"),
        ("to_number(ecc)", "is no number"),
        ("ver(ecc, '>=', '1')", "is no version"),
        ("ver(driver.branch, '>=', '1')", "580 is no text"),
        ("ver(driver.pin, '>=', '1')", "null is no text"),
        ("age_hours(ecc)", "is no time"),
        ("matches(driver.pin, 'x')", "null is no text"),
    ],
)
def test_what_is_unknown_or_of_another_type_is_an_error_that_says_what_met_what(text, said):
    with pytest.raises(EvaluationError) as caught:
        value(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("left", "sign", "right", "expected"),
    [
        ("580.95.05", ">=", "580.95.5", True),
        ("9.0", "<", "10.0", True),
        ("1000.1", "<", "580", False),
        ("2.9.1+cu128", "==", "2.9.1", True),
        ("13.0", "==", "13", True),
        ("13.0.1", "!=", "13", True),
        ("570", ">", "570.0", False),
        ("12.8", "<=", "12.8", True),
    ],
)
def test_versions_compare_by_their_numbers(left, sign, right, expected):
    assert value(f"ver(a, '{sign}', b)", {"a": left, "b": right}) is expected


@pytest.mark.parametrize(
    "text", ["", " 580", "580 ", "580.", "v1", "2.10.0a0", "1.2.3-1", "\u0663.1", "1" * 10, "1.2\n", "580.95.05; rm"]
)
def test_what_is_no_version_is_never_compared(text):
    with pytest.raises(EvaluationError, match="is no version"):
        value("ver(a, '>=', '1')", {"a": text})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-23",
        "2026-11-23T12:00:00",
        "2026-11-23T12:00:00+02:00",
        "2026-13-01T00:00:00Z",
        "yesterday",
        "\u0662026-11-23T12:00:00Z",
    ],
)
def test_what_is_no_time_of_utc_has_no_age(text):
    with pytest.raises(EvaluationError, match="is no time"):
        value("age_hours(t)", {"t": text, "now": DOCUMENT["now"]})


def test_a_time_in_the_future_has_no_age_beyond_what_clocks_may_differ():
    with pytest.raises(EvaluationError, match="in the future"):
        value("age_hours(t)", {"t": "2026-11-23T12:05:01Z", "now": DOCUMENT["now"]})


def test_an_age_needs_a_now():
    with pytest.raises(EvaluationError, match="no `now`"):
        value("age_hours(t)", {"t": DOCUMENT["now"]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("driver[", "no JMESPath expression"),
        ("driver ==", "no JMESPath expression"),
        ("driver.x = 1", "no JMESPath expression at character"),
        ("not_null(driver, gpus)", "no function not_null"),
        ("to_string(driver)", "no function to_string"),
        ("verr(driver, '<', '1')", "no function verr"),
        ("length(a, b)", "takes 1 arguments"),
        ("driver.loaded > '5'", "compares numbers alone"),
        ("`true` < driver.x", "compares numbers alone"),
        ("driver.mismatch == false", "stands in backticks"),
        ("driver.pin == null", "stands in backticks"),
        ("driver.pin == `nul`", "backticks is no JSON"),
        ("`1` == `1`", "same for every host"),
        ("`true` || driver.x", "same for every host"),
        ("driver.x && `true`", "same for every host"),
        ("gpus[?`true`]", "same for every host"),
        ("length(`[]`)", "same for every host"),
        ("!driver.mismatch", "write !(a.b)"),
        ("!gpus[?ok]", "projection"),
        ("!defined(driver.lost)", "true where nothing was observed"),
        ("gpus[?!(defined(lost))]", "true where nothing was observed"),
        ("ver(driver.x, 'ge', '1')", "second argument is one of"),
        ("ver(driver.x, '>=', 'new')", "is no version"),
        ("ver(driver.x, driver.sign, '1')", "second argument is one of"),
        ("matches(driver.x, '(')", "no regular expression"),
        ("matches(driver.x, '(a+)+b')", "repeats what repeats"),
        ("length(&a)", "`&` stands only in map"),
        ("map(a, b)", "begins with &"),
        ("gpus[::0]", "step 0"),
        ("a" * 4097, "longer than 4096 bytes"),
        ("!" * 4000 + "a", "deeper than 40 levels"),
        ("(" * 2000 + "a" + ")" * 2000, "deeper than 40 levels"),
        (" && ".join(["a"] * 500), "deeper than 40 levels"),
        ("a == `1e999`", "is no number"),
    ],
)
def test_what_could_not_mean_what_it_says_is_refused(text, said):
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_expression_knows_what_it_reads_from_the_top():
    found = compile_expression("gpus[?width < `16`].id | length(@) == `0` && ver(driver.loaded, '>=', params.floor.x)")
    assert found.reads >= {("gpus",)}
    found = compile_expression("contains(gpus[*].id, item.id) && params.hours > `1`")
    assert found.reads == {("gpus",), ("item", "id"), ("params", "hours")}


def test_every_function_is_described():
    assert all(name == function.usage.partition("(")[0] and function.does for name, function in FUNCTIONS.items())


def test_a_text_that_is_matched_cannot_keep_the_controller_busy():
    began = time.monotonic()
    with pytest.raises(EvaluationError, match="longer than 512"):
        value("matches(t, '.*.*.*x')", {"t": "a" * 100_000})
    assert value("matches(t, '.*a.*b')", {"t": "a" * 512}) is False
    assert time.monotonic() - began < 2


def test_a_list_that_doubles_with_each_step_ends():
    text = "[words, words]" + " | [@, @][]" * 30
    with pytest.raises(EvaluationError, match="more than 100000 elements"):
        value(text)


def test_a_message_shows_little_of_what_a_host_says():
    with pytest.raises(EvaluationError) as caught:
        value("t > `1`", {"t": "\x1b[2J" + "a" * 10_000})
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c", "now"]), inner, max_size=3)
    ),
    max_leaves=8,
)
EXPRESSIONS = [
    *(
        "a.b",
        "a == b",
        "a != b",
        "a < b",
        "!a",
        "a && b",
        "a || b",
        "a[*].b",
        "a[?b].c",
        "a.*",
        "a[]",
        "a[0]",
        "a[1:]",
        "[a, b]",
        "{x: a}",
    ),
    *(
        "length(a)",
        "all(a)",
        "any(a)",
        "contains(a, b)",
        "ver(a, '<', b)",
        "age_hours(a)",
        "matches(a, '[a-z]+')",
        "defined(a.b)",
    ),
    *(
        "max(a)",
        "sum(a)",
        "avg(a)",
        "sort(a)",
        "keys(a)",
        "values(a)",
        "join(a, b)",
        "to_number(a)",
        "map(&b, a)",
        "floor(a)",
        "abs(a)",
    ),
    *(
        "a.b == `null`",
        "a[?b == c]",
        "a | b",
        "matches(a, b)",
        "ceil(a)",
        "min(a)",
        "starts_with(a, b)",
        "ends_with(a, b)",
    ),
]


@given(ANY, st.sampled_from(EXPRESSIONS))
def test_whatever_the_document_is_there_is_a_value_or_one_kind_of_error(document, text):
    said = "a value"
    try:
        value(text, document)
    except EvaluationError as error:
        said = str(error)
    assert said


@given(st.text(alphabet="ab.[]?*&|!=<>()'`\"{}:,0 @\\", max_size=30))
def test_whatever_the_text_is_it_compiles_or_is_refused(text):
    said = "a value"
    try:
        compile_expression(text).evaluate({"a": [{"b": 0}], "b": {"a": True}})
    except (ExpressionError, EvaluationError) as error:
        said = str(error)
    assert said


@given(ANY, ANY)
def test_two_values_are_never_both_equal_and_different_nor_either_where_one_is_null(a, b):
    found = []
    for sign in ("==", "!="):
        try:
            found.append(value(f"a {sign} b", {"a": a, "b": b}))
        except EvaluationError:
            found.append(None)
    assert found in ([True, False], [False, True], [None, None])
    if a is None or b is None:
        assert found == [None, None]


class Tagged(str):
    """As Ansible's own strings."""


def test_a_copy_is_of_plain_types_and_holds_nothing_that_a_file_could_not():
    class Folder(dict[str, Any]):
        pass

    found = plain(Folder(a=Tagged("x"), b=("y", 1), c=float("nan"), d="\udc80", e={1: float("inf")}))
    assert found == {"a": "x", "b": ["y", 1], "c": "nan", "d": "?", "e": {"1": "inf"}}
    assert type(found["a"]) is str
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


def test_a_document_that_contains_itself_or_is_too_deep_is_refused():
    loop: dict[str, Any] = {}
    loop["self"] = loop
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for document in (loop, deep, {(1, 2): 3}):
        with pytest.raises(ValueError, match=r"too deep|no JSON"):
            plain(document)


def test_only_what_is_missing_can_be_asked_for_with_defined():
    with pytest.raises(Missing):
        value("driver.nowhere")
    with pytest.raises(EvaluationError, match="not an object"):
        value("defined(ecc.uncorrected)")
