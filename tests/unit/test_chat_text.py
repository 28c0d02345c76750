"""What members type, as others see it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.chat import text as chat_text
from netsvc.services.chat.text import MARKS, clean_text, edit, is_visible

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
WALES = "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"


class TestCleaning:
    @pytest.mark.parametrize(
        "kept",
        [
            "hello, world!",
            "学习 Grüße Привет γειά שָׁלוֹם مَرْحَبًا",
            "می\u200cخواهم",  # Persian needs its non-joiner,
            "ന്\u200d ക്\u200dഷ",  # and Malayalam its joiner.
            f"{FAMILY} {WALES} \u2764\ufe0f 1\ufe0f\u20e3 \U0001f44d\U0001f3fd",
            "ကျွန်ုပ်တို့ བསྒྲུབས ស្ត្រី สวัสดีที่รัก שָּׁ",
            "e\u0301" * 300,
        ],
    )
    def test_the_text_of_living_scripts_stays(self, kept: str) -> None:
        assert clean_text(kept) == kept and is_visible(kept)

    @pytest.mark.parametrize("joiner", ["", "\u200d", "\u200c", "\u200b", "\x00"])
    def test_of_many_marks_on_a_letter_a_few_stay(self, joiner: str) -> None:
        cleaned = clean_text("a" + f"\u0301{joiner}" * 300 + "b\u0489\u20dd")
        assert sum(unicodedata.category(each)[0] == "M" for each in cleaned) == MARKS + 2
        assert cleaned[0] == "a" and cleaned.endswith("b\u0489\u20dd")

    @pytest.mark.parametrize(
        "character", [*"\x00\x07\b\x1b\x7f\x85\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\ud800"]
    )
    def test_what_reorders_or_commands_goes(self, character: str) -> None:
        assert clean_text(f"a{character}b{character}") == "ab"

    def test_a_tab_is_a_space(self) -> None:
        assert clean_text("a\tb") == "a b"

    @settings(deadline=None)
    @given(st.one_of(st.text(), st.text(st.sampled_from("a\u0301\u200d\u202e\t学"))))
    def test_cleaning_twice_is_cleaning_once(self, text: str) -> None:
        cleaned = clean_text(text)
        assert clean_text(cleaned) == cleaned
        assert all(character.isprintable() or character in text for character in cleaned)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "\u3000\xa0",
            "\u3164",
            "\u2800\u2800",
            "\u200b",
            "\u200d",
            "\U000e0041\U000e007f",
            "\xad\u2060\ufe0f",
        ],
    )
    def test_a_text_of_which_nothing_shows_is_not_visible(self, text: str) -> None:
        assert not is_visible(clean_text(text))

    @pytest.mark.parametrize("text", ["a", "\u200b.", FAMILY, WALES, "\u0600", "\ue000", "中"])
    def test_a_text_of_which_something_shows_is_visible(self, text: str) -> None:
        assert is_visible(clean_text(text))

    def test_what_needs_no_look_is_visible_and_has_no_marks(self) -> None:
        plain = [each for each in map(chr, range(0x20000)) if chat_text._PLAIN.fullmatch(each)]
        assert len(plain) > 30_000
        for each in plain:
            assert each.isprintable() and unicodedata.category(each)[0] != "M" and (each == " " or is_visible(each))


class TestEditing:
    @pytest.mark.parametrize(
        ("typed", "line"),
        [
            ("helpo\b\blo", "hello"),
            ("helpo\x7f\x7flo", "hello"),
            ("\b\x7fhi\b\b\b", ""),
            ("你好\x7f吗", "你吗"),
            # A character as it is displayed goes at once.
            ("ae\u0301\bx", "ax"),
            (f"{FAMILY}\bx", "x"),
            (f"{WALES}\b", ""),
            ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7\b", "\U0001f1e9\U0001f1ea"),
            ("\U0001f44d\U0001f3fd\b", ""),
            ("한글\b", "한"),
            # Of Thai, the mark goes with its letter.
            ("กี่\b", ""),
            ("never mind\x15hello", "hello"),
            ("one two  \x17three", "one three"),
            ("\x17\x15", ""),
            # Arrow and function keys, pasted text, colours.
            ("a\x1b[Db\x1bOA\x1b[15~\x1b[1;5Cc", "abc"),
            ("\x1b[200~pasted\x1b[201~", "pasted"),
            ("\x1b[31mred\x1b[0m \x1b]0;title\x07x", "red x"),
        ],
    )
    def test_keys_do_what_they_do_in_a_terminal(self, typed: str, line: str) -> None:
        assert edit(typed) == line

    @settings(deadline=None)
    @given(st.one_of(st.text(), st.text(st.sampled_from("a é\u0301\u200d👍🇩🇪\b\x7f\x15\x17\x1b[O]m\x07"))))
    def test_no_text_raises_and_what_is_edited_has_no_keys(self, text: str) -> None:
        edited = edit(text)
        assert not set(edited) & set("\b\x7f\x15\x17")
        assert (len(edited) <= len(text) and edit(edited) == edited) or "\x1b" in text
