from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.chat.names import ChatError, NameIndex, check_name, name_key, reserved_names
from netsvc.services.chat.text import clean_text
from tests.builders.facts import states

#: The accepted form, as each refusal names it.
FORM = ("1 to 16",)

RESERVED = reserved_names(["Chef", "irc"])


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a",
            "Ann",
            "a_b.c-d",
            "_ann_",
            "a..b",
            "1st",
            "小明",
            "Ångström",
            "Дмитрий",
            "שלום",
            "محمد",
            "नमस्ते",
            "한글",
            "x" * 16,
        ),
        # RFC 8266 has symbols and punctuation, but what would separate a name from the text around it.
        *("o'brien", "C++", "a=b", "ಠ_ಠ", "♥", "💩", "a😀"),
        # Joiners where a script needs them (RFC 5892, A.1 and A.2): Persian, Malayalam.
        *("می\u200cخواهم", "ക്\u200d"),
        # A visarga looks like a colon, and is a letter's mark.
        "दुःख",
        # Sequences that are one emoji.
        *(
            "👨\u200d👩\u200d👧",
            "I❤\ufe0fU",
            "1\ufe0f\u20e3",
            "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            "🇨🇳",
        ),
    ],
)
def test_names_of_any_script_are_accepted(name: str) -> None:
    assert check_name(name, 16) == unicodedata.normalize("NFKC", name)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("", ["missing"]),
        ("a b", ["space"]),
        ("a[b", ['"["']),
        ("[", ['"["']),
        ("*", ['"*"']),
        ("a:", ['":"']),
        ("a\x1bb", ["U+001B"]),
        ("a\u200bb", ["U+200B"]),
        ("a\u200db", ["U+200D"]),
        ("a\u202eb", ["U+202E"]),
        ("a\u00adb", ["U+00AD"]),
        ("a\ud800", ["U+D800"]),
        ("½", ['"⁄"']),
        ("a\ua789", ['"\ua789"']),
        ("a/b", ['"/"']),
        ("$a", ["begin", '"$"']),
        ("a\u200c", ["U+200C"]),
        ("a\ufe0f", ["U+FE0F"]),
        ("👨\u200da", ["U+200D"]),
        ("a\U000e0067", ["U+E0067"]),
        ("-a", ["begin", '"-"']),
        ("a\u0335nn", ["U+0335"]),
        ("a\u0489nn", ["U+0489"]),
        ("a\u20d2nn", ["U+20D2"]),
        ("\u0301a", ["begin", "U+0301"]),
        ("a.", ["end", '"."']),
        ("x" * 17, ["17 characters"]),
        ("x" * 65, ["65 characters"]),
        ("\ufdfa", ["18 characters"]),
        ("a_\u0332b", ["mark", '"_"']),
        ("q\u0323\u0307\u0301", ["2 marks"]),
        ("YOU", ['"YOU"']),
        ("ｙｏｕ", ['"you"']),
        ("Server", ['"Server"']),
        ("аdmin", ['"аdmin"']),
        ("管理员", ['"管理员"']),
        ("guest", ['"guest"']),
        ("Guest12", ['"Guest12"']),
        ("guestl", ['"guestl"']),
        ("CHEF", ['"CHEF"']),
        ("ADM1N", ['"ADM1N"']),
        ("lrc", ['"lrc"']),
    ],
)
def test_a_refusal_says_why_and_the_accepted_form(name: str, facts: list[str]) -> None:
    with pytest.raises(ChatError) as refused:
        check_name(name, 16, RESERVED)
    assert states(str(refused.value), *facts, *FORM)


@pytest.mark.parametrize(
    "code",
    [
        # Letters and marks that show nothing.
        *(0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180D, 0x180F, 0x3164, 0xFFA0, 0xFE00, 0xFE0F, 0xE01EF),
        # Format characters, and a symbol.
        *(0x61C, 0x180E, 0x2060, 0xFEFF, 0xE0041, 0x2800),
    ],
)
def test_nothing_invisible_is_in_a_name(code: int) -> None:
    with pytest.raises(ChatError, match=r'U\+|"'):
        check_name(f"a{chr(code)}b", 16)


def test_two_marks_in_a_row_are_enough_for_a_letter() -> None:
    assert check_name("q\u0323\u0307x", 16) == "q\u0323\u0307x"
    assert check_name("a\u0323\u0302", 16) == "ậ"


def test_the_length_is_that_of_the_composed_name() -> None:
    assert check_name("a\u0323\u0302" * 16, 16) == "ậ" * 16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ann", "ANN"),
        ("straße", "STRASSE"),
        ("ﬁn", "FIN"),
        ("é", "e\u0301"),
        ("Å", "\u212b"),
        ("ａ", "A"),
        ("²", "2"),
        ("ΣΑΣ", "σας"),
        ("ŉ", "ʼn"),
        ("\u1e9e", "ss"),
        ("\u1fb2", "α\u0345\u0300"),
    ],
)
def test_names_that_differ_in_case_or_form_are_the_same(one: str, other: str) -> None:
    assert name_key(one) == name_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("paypal", "раураl"), ("modern", "rnodern"), ("Ivan", "lvan"), ("B0b", "BOb"), ("РАУРАL", "paypal"), ("é", "é")],
)
def test_names_that_look_alike_are_similar(one: str, other: str) -> None:
    index: NameIndex[int] = NameIndex()
    index.add(one, 1)
    assert index.similar(other) == 1
    index.remove(one)
    assert index.similar(other) is None and not len(index)


def test_a_guest_of_letters_is_no_guest() -> None:
    assert check_name("guesthouse", 16, RESERVED) == "guesthouse"


def test_different_names_are_different() -> None:
    assert len({name_key(name) for name in ("ann", "anna", "änn", "an-n", "小明", "小名")}) == 6


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(st.sampled_from("αΑᾳωῳAıİiſßΐ\u0345\u0300\u0323\u0308\u0313\u1100\u1161"))))
def test_a_key_is_its_own_key_and_that_of_every_case_and_form(name: str) -> None:
    key = name_key(name)
    assert name_key(key) == key
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert name_key(unicodedata.normalize(form, name)) == key
    assert name_key(unicodedata.normalize("NFD", name).casefold()) == key


_LIKELY = st.text(st.sampled_from("aB1éß中-_. [\u0301\u0323\u200b\u3164\x1b#ﬁ"), max_size=8)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=40), _LIKELY))
def test_an_accepted_name_can_forge_no_line_and_is_accepted_again(text: str) -> None:
    try:
        name = check_name(text, 16)
    except ChatError as refused:
        said = str(refused)
    else:
        said = name
        assert 0 < len(name) <= 16
        assert check_name(name, 16) == name and clean_text(name) == name
        assert not set(name) & set(" []()*:>/#\u3164")
        assert name_key(name) == name_key(text)
    assert clean_text(said) == said
