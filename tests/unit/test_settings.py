"""Values become options, and every wrong one a line that says how the user wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.python import usage

from netsvc.base.errors import UserError
from netsvc.interfaces import Options
from netsvc.options import (
    Setting,
    byte_count,
    declared_settings,
    encoding,
    number,
    parse_settings,
    seconds,
    whole_number,
)
from tests.builders.facts import lacks, states


class Wanted(Options):
    """Options of every kind, and a judgement of all together."""

    optParameters = [
        ["text", None, "hello", "What to say"],
        ["size", None, 64, "How much", byte_count(1, 1024)],
        ["max-size", "m", None, "How much at most", whole_number(0, 10)],
        ["exact", None, None, "How much, exactly", Decimal],
        ["pattern", None, None, None, re.compile],
    ]
    optFlags = [["loud", "l", "Say it loudly"]]

    def opt_extra_word(self, word: str) -> None:
        """One more word."""
        self.setdefault("words", []).append(word)

    def postOptions(self) -> None:
        if self["text"] == "hush" and self["loud"]:
            raise usage.UsageError("--text hush and --loud, but not --louder, contradict --max-sizes")
        if self["pattern"] and self["max-size"] is None:
            raise usage.UsageError("--pattern needs --max-size")


def errors(settings: dict[str, object], written: Callable[[str], str] = "--x-{}".format) -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        parse_settings(Wanted, settings, written)
    return raised.value.errors


@pytest.mark.parametrize(("value", "wanted"), [("0", 0), (0, 0), ("7", 7), (" 7 ", 7), ("+7", 7), ("10", 10)])
def test_a_whole_number_is_taken_up_to_its_bounds(value: object, wanted: int) -> None:
    assert whole_number(0, 10)(value) == wanted


@pytest.mark.parametrize("value", ["-1", "11", "", "x", "1.0", "1e1", "None", None, True, "9" * 5000, "1\n1"])
def test_a_whole_number_beyond_its_bounds_or_none_at_all_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^a whole number from 0 to 10$"):
        whole_number(0, 10)(value)


def test_a_whole_number_may_be_negative() -> None:
    assert whole_number(-5, -1)("-5") == -5
    with pytest.raises(ValueError, match="from -5 to -1"):
        whole_number(-5, -1)("-6")
    with pytest.raises(ValueError, match="from -5 to -1"):
        whole_number(-5, -1)("x")


@pytest.mark.parametrize(("value", "wanted"), [("0", 0.0), ("0.5", 0.5), (2.5, 2.5), ("2.5", 2.5), ("1e-3", 0.001)])
def test_a_number_is_taken_up_to_its_bounds(value: object, wanted: float) -> None:
    assert number(0, 2.5)(value) == wanted


@pytest.mark.parametrize("value", ["-0.1", "2.6", "nan", "inf", "-inf", "", "x", None, "1s"])
def test_a_number_beyond_its_bounds_or_none_at_all_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^a number from 0 to 2\.5$"):
        number(0, 2.5)(value)


def test_seconds_are_a_number_that_says_its_unit() -> None:
    assert seconds(0.1, 60)("0.1") == 0.1
    assert seconds(0.1, 60)(60) == 60
    for value in ("0", "60.1", "nan"):
        with pytest.raises(ValueError, match=r"^seconds from 0\.1 to 60$"):
            seconds(0.1, 60)(value)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("90s", 90), ("10m", 600), (" 1.5 H ", 5400), ("1.1m", 66), ("366d", 31_622_400), ("1e3", 1000)],
)
def test_seconds_may_be_written_as_minutes_hours_and_days(value: str, wanted: float) -> None:
    assert seconds(0.1, 366 * 86400)(value) == wanted


@pytest.mark.parametrize(
    "value", ["367d", "0m", "m", "-1m", "1e3m", "1m30s", "10 min", "\u0661m", f"{'9' * 10}d", "1." + "1" * 10 + "h"]
)
def test_times_beyond_the_bounds_or_in_other_forms_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"\bseconds\b.* 0\.1 to 31622400\b.*\bm, h, d\b"):
        seconds(0.1, 366 * 86400)(value)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("1", 1),
        (64, 64),
        ("1024", 1024),
        ("64K", 65536),
        ("64k", 65536),
        ("64KB", 65536),
        ("64KiB", 65536),
        ("1M", 1048576),
        ("1G", 1073741824),
        (" 5b ", 5),
    ],
)
def test_a_byte_count_may_have_a_unit(value: object, wanted: int) -> None:
    assert byte_count(1, 1073741824)(value) == wanted


@pytest.mark.parametrize(
    "value", ["0", "1025", "2K", "", "K", "b", "1T", "1 K", "-1", "1.5K", "0x10", "²", None, True, "9" * 5000, "1KK"]
)
def test_a_byte_count_beyond_its_bounds_or_none_at_all_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\bbytes\b.* 1 to 1024\b.*\bK, M, G\b"):
        byte_count(1, 1024)(value)


@pytest.mark.parametrize(
    ("value", "wanted"), [("utf-8", "utf-8"), ("UTF8", "utf-8"), ("GBK", "gbk"), ("latin-1", "iso8859-1")]
)
def test_an_encoding_is_any_text_encoding_under_its_usual_name(value: str, wanted: str) -> None:
    assert encoding(value) == wanted


@pytest.mark.parametrize(
    "value", ["", "klingon", "base64", "rot13", "zlib", "idna", "punycode", "undefined", "a\x00b", "\udcff", None]
)
def test_what_is_no_text_encoding_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\bencoding\b.*\butf-8\b"):
        encoding(value)


COERCERS: list[Callable[[Any], Any]] = [whole_number(0, 9), number(0, 9), seconds(0, 9), byte_count(0, 9), encoding]


@given(st.text(), st.sampled_from(COERCERS))
def test_a_coercer_takes_any_text_or_raises_a_value_error_of_one_line(text: str, coerce: Callable[[Any], Any]) -> None:
    line = "taken"
    try:
        coerce(text)
    except ValueError as error:
        line = str(error)
    assert len(line.splitlines()) == 1


def test_settings_are_declared_in_order_with_their_defaults() -> None:
    assert set(declared_settings(Wanted)) == {
        Setting("loud", True, 0, "Say it loudly"),
        Setting("text", False, "hello", "What to say"),
        Setting("size", False, 64, "How much", "BYTES"),
        Setting("max-size", False, None, "How much at most", "NUMBER"),
        Setting("exact", False, None, "How much, exactly"),
        Setting("pattern", False, None, ""),
        Setting("extra-word", False, None, "One more word."),
    }
    names = [setting.name for setting in declared_settings(Wanted)]
    assert [name for name in names if name in ("text", "size", "max-size")] == ["text", "size", "max-size"]


def test_without_settings_the_defaults_hold_and_there_is_nothing_to_declare() -> None:
    options = parse_settings(Wanted, {})
    assert (options["text"], options["size"], options["max-size"], options["loud"]) == ("hello", 64, None, 0)
    assert declared_settings(Options) == []
    assert parse_settings(Options, {}) == {}


def test_settings_are_coerced_as_on_a_command_line() -> None:
    options = parse_settings(Wanted, {"size": "1K", "max-size": 5, "loud": True, "extra-word": "w", "exact": "0.1"})
    assert (options["size"], options["max-size"], options["loud"]) == (1024, 5, 1)
    assert (options["words"], options["exact"]) == (["w"], Decimal("0.1"))


def test_a_flag_set_to_false_is_not_set() -> None:
    assert parse_settings(Wanted, {"loud": False})["loud"] == 0


@pytest.mark.parametrize("value", ["--x", "-x", "-", "--", "", "a b", "a=b", "=", "--loud", "--text=other", "\n", "中"])
def test_a_value_is_taken_as_it_is_whatever_it_begins_with(value: str) -> None:
    options = parse_settings(Wanted, {"text": value})
    assert options["text"] == value
    assert options["loud"] == 0


def test_every_wrong_setting_has_a_line_that_names_it_as_it_was_written() -> None:
    wrong: dict[str, object] = {"size": "huge", "max-size": "11", "loud": "yes", "text": True, "nonsense": "1"}
    facts = (
        ("--x-size huge: ", "bytes", "1 to 1024", "64K"),
        ("--x-max-size 11: ", "0 to 10"),
        ("--x-loud ", "no value"),
        ("--x-text ", "needs a value"),
        ("--x-nonsense: ",),
    )
    assert [lacks(line, *each) for line, each in zip(errors(wrong), facts, strict=True)] == [[]] * len(facts)


@pytest.mark.parametrize("name", ["tex", "t", "l", "m", "help", "version", "", "text=x", "--text", "max_size"])
@pytest.mark.parametrize("value", [True, "x"])
def test_a_name_is_the_whole_name_of_a_declared_option(name: str, value: object, capsys: Any) -> None:
    [line] = errors({name: value})
    assert line.startswith(f"--x-{name}: ")
    assert capsys.readouterr().out == ""


def test_an_error_of_a_coercer_that_is_no_value_error_is_a_line_as_well() -> None:
    assert errors({"exact": "x", "pattern": "("}) == (
        "--x-exact x: a number",
        f"--x-pattern (: {re.error.__name__}: missing ), unterminated subpattern at position 0",
    )


def coloured(value: str) -> str:
    """Accept a colour, as the table of a plugin may."""
    return {"red": "#f00"}[value]


def silent(value: str) -> str:
    """Refuse without a word."""
    raise ValueError


@pytest.mark.parametrize(
    ("coerce", "value", "form", "placeholder"),
    [
        (int, "ten", "a whole number", "NUMBER"),
        (int, "1.5", "a whole number", "NUMBER"),
        (lambda value: int(value, 16), "0xg", "a whole number", "VALUE"),
        (float, "half", "a number", "NUMBER"),
        (Decimal, "x", "a number", "VALUE"),
        (Path, "a\0b", None, "FILE"),
        (coloured, "blue", "KeyError: 'blue'", "VALUE"),
        (silent, "x", "not an accepted value", "VALUE"),
        (whole_number(0, 10), "11", "a whole number from 0 to 10", "NUMBER"),
    ],
)
def test_a_coercer_of_python_or_of_the_author_says_the_accepted_form(
    coerce: Any, value: str, form: str | None, placeholder: str
) -> None:
    class Own(Options):
        optParameters = [["level", None, None, "A level", coerce]]

    assert declared_settings(Own)[0].placeholder == placeholder
    if form is None:
        assert parse_settings(Own, {"level": value})["level"] == coerce(value)
        return
    with pytest.raises(UserError) as raised:
        parse_settings(Own, {"level": value}, "--lights-{}".format)
    assert raised.value.errors == (f"--lights-level {value}: {form}",)


def test_a_bool_is_refused_as_a_coercer() -> None:
    class Own(Options):
        optParameters = [["level", None, None, "A level", bool]]

    with pytest.raises(UserError) as raised:
        declared_settings(Own)
    assert lacks(raised.value.errors[0], "level", "bool", "optFlags") == []


def test_an_option_method_that_calls_int_says_it_as_well() -> None:
    class Own(Options):
        def opt_level(self, value: str) -> None:
            """A level."""
            self["level"] = int(value)

    with pytest.raises(UserError) as raised:
        parse_settings(Own, {"level": "x"})
    [line] = raised.value.errors
    assert states(line, "--level x: ", "number")


def test_a_wrong_value_is_shown_as_one_printable_line() -> None:
    [line] = errors({"size": "a\n\x1b[2J"})
    assert line.isprintable() and states(line, r"--x-size a\n\x1b[2J: ", "1 to 1024")


def test_post_options_judges_all_settings_together_and_names_options_as_they_were_written() -> None:
    assert errors({"loud": True, "text": "hush"}) == (
        "--x-text hush and --x-loud, but not --louder, contradict --max-sizes",
    )
    assert errors({"loud": True, "text": "hush"}, "[files] {}".format) == (
        "[files] text hush and [files] loud, but not --louder, contradict --max-sizes",
    )
    assert parse_settings(Wanted, {"text": "hush"})["text"] == "hush"
    assert parse_settings(Wanted, {"loud": True})["loud"] == 1


def test_settings_that_are_right_only_together_are_right() -> None:
    assert parse_settings(Wanted, {"pattern": "a+", "max-size": "5"})["max-size"] == 5
    assert errors({"pattern": "a+"}) == ("--x-pattern needs --x-max-size",)


def test_post_options_is_not_asked_about_wrong_settings() -> None:
    [line] = errors({"loud": True, "text": "hush", "size": "0"})
    assert states(line, "--x-size 0: ", "1 to 1024")


def test_parsing_one_set_of_settings_leaves_the_class_as_it_was() -> None:
    judge = Wanted.postOptions
    parse_settings(Wanted, {"loud": True, "size": "9"})
    assert Wanted.postOptions is judge
    assert parse_settings(Wanted, {})["size"] == 64


@given(
    st.dictionaries(
        st.sampled_from(["text", "size", "max-size", "loud", "exact", "nonsense"]) | st.text(max_size=5),
        st.booleans() | st.text() | st.integers(),
    )
)
def test_any_settings_give_options_or_printable_lines(settings: dict[str, object]) -> None:
    lines: tuple[str, ...] = ("taken",)
    try:
        parse_settings(Wanted, settings)
    except UserError as error:
        lines = error.errors
    assert lines
    assert all(len(line.splitlines()) == 1 and line.encode() for line in lines)
