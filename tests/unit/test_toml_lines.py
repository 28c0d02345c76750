"""The places of keys: their lines, and the same keys that tomllib finds."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.config.toml_lines import (
    DEEPEST,
    MOST_TOKENS,
    Key,
    TooComplexError,
    check_complexity,
    find_lines,
)

DOCUMENT = '''\
# A comment, and = [ " in it
drain = 4   # another
"quoted.key".'second' . bare = """
x = 1 # not a key
\\""""" # ends with two marks of its own
[services . echo]
udp = [9001, "a#]\\"", # ]
  '}', [ [ ] , 7 ],
  { address = "x", limits = { idle = 3, "\\u007a" = [
    { k = 1 } ] } },
]
when = 1979-05-27 07:32:00
amount = 1.5e3
lines = \'\'\'
[not.a.table]\'\'\'\'\'
[[twistd]]
run = 'a'
[twistd.limits]
x.y = 1
[[twistd]]
[[twistd.more]]
z = 1
[[twistd.more]]
z = 2'''


def test_every_key_has_the_line_on_which_it_stands() -> None:
    assert find_lines(DOCUMENT) == {
        ("drain",): 2,
        ("quoted.key",): 3,
        ("quoted.key", "second"): 3,
        ("quoted.key", "second", "bare"): 3,
        ("services",): 6,
        ("services", "echo"): 6,
        ("services", "echo", "udp"): 7,
        ("services", "echo", "udp", 0): 7,
        ("services", "echo", "udp", 1): 7,
        ("services", "echo", "udp", 2): 8,
        ("services", "echo", "udp", 3): 8,
        ("services", "echo", "udp", 3, 0): 8,
        ("services", "echo", "udp", 3, 1): 8,
        ("services", "echo", "udp", 4): 9,
        ("services", "echo", "udp", 4, "address"): 9,
        ("services", "echo", "udp", 4, "limits"): 9,
        ("services", "echo", "udp", 4, "limits", "idle"): 9,
        ("services", "echo", "udp", 4, "limits", "z"): 9,
        ("services", "echo", "udp", 4, "limits", "z", 0): 10,
        ("services", "echo", "udp", 4, "limits", "z", 0, "k"): 10,
        ("services", "echo", "when"): 12,
        ("services", "echo", "amount"): 13,
        ("services", "echo", "lines"): 14,
        ("twistd",): 16,
        ("twistd", 0): 16,
        ("twistd", 0, "run"): 17,
        ("twistd", 0, "limits"): 18,
        ("twistd", 0, "limits", "x"): 19,
        ("twistd", 0, "limits", "x", "y"): 19,
        ("twistd", 1): 20,
        ("twistd", 1, "more"): 21,
        ("twistd", 1, "more", 0): 21,
        ("twistd", 1, "more", 0, "z"): 22,
        ("twistd", 1, "more", 1): 23,
        ("twistd", 1, "more", 1, "z"): 24,
    }
    assert set(find_lines(DOCUMENT)) == set(paths(tomllib.loads(DOCUMENT)))


def test_a_line_may_end_as_on_windows() -> None:
    text = DOCUMENT.replace("\n", "\r\n")
    assert find_lines(text) == find_lines(DOCUMENT)


def test_nothing_has_no_places() -> None:
    for text in ("", "\n\n", "# a comment", " \t"):
        assert find_lines(text) == {}


def paths(value: Any, path: Key = ()) -> list[Key]:
    """List the paths in what tomllib read."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [*([path] if path else []), *(found for key, each in items for found in paths(each, (*path, key)))]


PIECES = st.sampled_from(
    [
        "a", "b.c", '"d.=#"', "'['", "=", " = ", "1", "1.5", '"x"', '""', "'y'", '"""', '""', "'''", "\\", '"', "'",
        "[", "]", "{", "}", ",", "\n", "\r\n", " ", "# c", "[a]\n", "[[t]]\n", "[[t]]\nk=1\n", "[t.u]\n", "true",
        "1979-05-27 07:32:00",
        "[1, 2]", "{a=1, b={}}", "k=[\n{x=1},\n]\n", 'm = """\nn=1\n"""\n', "\ufeff", "é", "\\u0041",
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_text_that_is_toml_has_the_keys_that_tomllib_finds(text: str) -> None:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    check_complexity(text)
    check(text, table)


NAMES = st.sampled_from(["a", "b", "c-d", "3", "a b", 'q"', "#", "=", "[x]", "é", ""])
SPACE = st.sampled_from(["", " ", "\t", "  "])
BREAK = st.sampled_from(["", " ", "\n", " # ] } , = [\n", "\n\n\t"])


@st.composite
def written(draw: Any, value: Any) -> str:
    """Write a value in one of the ways that TOML has."""
    if isinstance(value, list):
        items = [f"{draw(BREAK)}{draw(written(item))}{draw(BREAK)}" for item in value]
        return f"[{','.join(items)}{draw(st.sampled_from([',', ''])) if items else ''}{draw(BREAK)}]"
    if isinstance(value, dict):
        pairs = [f"{draw(SPACE)}{quoted(key)}{draw(SPACE)}={draw(written(each))}" for key, each in value.items()]
        return f"{{{','.join(pairs)}{draw(SPACE)}}}"
    if isinstance(value, str):
        quotes = draw(st.sampled_from(['"', '"""']))
        escaped = value.replace("\\", "\\\\").replace('"', draw(st.just('\\"')))
        return f"{quotes}{escaped}{quotes}"
    return repr(value).lower()


def quoted(key: str) -> str:
    return '"' + key.replace('"', '\\"') + '"'


VALUES = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.text("ab\\\"'#[]{}=,.", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(st.data(), st.lists(st.tuples(st.sampled_from(["", "[{}]\n", "[[{}]]\n"]), NAMES, NAMES, VALUES), max_size=6))
def test_values_of_any_shape_have_their_keys_found(data: st.DataObject, statements: list[Any]) -> None:
    parts = []
    for header, table, name, value in statements:
        parts.append(header.format(quoted(table)))
        parts.append(f"{quoted(name)} ={data.draw(SPACE)}{data.draw(written(value))} # end\n")
    text = "".join(parts)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    check(text, table)


def check(text: str, table: dict[str, Any]) -> None:
    lines = find_lines(text)
    assert set(lines) == set(paths(table))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_the_work_grows_with_the_length_alone() -> None:
    # A second look at every line would be 10,000 million.
    text = "deny = [\n" + '"192.0.2.0/24",\n' * 100_000 + "]\n"
    assert find_lines(text)["deny", 99_999] == 100_001


#: What is within a limit, and what is beyond it on line 3.
LIMITS = {
    "a dotted key": ".".join("a" * DEEPEST) + " = 1",
    "a header": "[" + ".".join("a" * DEEPEST) + "]",
    "quoted parts": " . ".join(['"a.b"'] * DEEPEST) + " = 1",
    "arrays": "a = " + "[" * DEEPEST + "]" * DEEPEST,
    "arrays on several lines": "a = " + "[" * DEEPEST + "\n" + "]" * DEEPEST,
    "inline tables": "a = " + "{ a = " * DEEPEST + "1" + "}" * DEEPEST,
    "words": "a = [" + "1," * (MOST_TOKENS // 2 - 2) + "]",
    "texts": "a = [" + "''," * (MOST_TOKENS // 2 - 2) + "]",
}
BEYOND = {
    "a dotted key": "a." * DEEPEST + "a = 1",
    "a dotted key of 20,000 parts": "a." * 20_000 + "a = 1",
    "a header": "[" + "a." * DEEPEST + "a]",
    "a key in an inline table": "a = { " + "a." * DEEPEST + "a = 1 }",
    "arrays": "a = " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
    "arrays without an end": "a = " + "[" * 100_000,
    "inline tables": "a = " + "{ a = " * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1),
    "both": "a = " + "[{ a = " * DEEPEST + "1" + "}]" * DEEPEST,
    "words": "a = [" + "1," * (MOST_TOKENS // 2) + "]",
    "headers": "[[a]]" * MOST_TOKENS,
}


@pytest.mark.parametrize("text", LIMITS.values(), ids=LIMITS)
def test_what_is_within_the_limits_of_complexity_is_toml(text: str) -> None:
    check_complexity(text)
    tomllib.loads(text)


@pytest.mark.parametrize("text", BEYOND.values(), ids=BEYOND)
def test_what_is_beyond_a_limit_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(TooComplexError) as caught:
        check_complexity(f"# [[[[\nb = '[[[['\n{text}")
    assert caught.value.line == 3


@pytest.mark.parametrize("text", ['"""', "'''", '"', "'", "a = '''" + "[" * 100])
def test_a_text_without_an_end_ends_the_check(text: str) -> None:
    # What follows would be read as words again and again, from every mark in it.
    check_complexity(text + "\n" + "[" * 100)


@given(st.lists(PIECES, max_size=25).map("".join))
def test_any_text_can_be_checked(text: str) -> None:
    check_complexity(text)
