"""Which encoding a client writes, however little it has written."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.chat.dialect import Dialect
from netsvc.services.chat.wording import line_form

#: Each of them is valid UTF-8 too: for letters that nobody writes, or not alone.
SHORT = [
    "学习",
    "学",
    "一",
    "全",
    "去",
    "同",
    "太",
    "什",
    "书",
    "十",
    "山",
    "时",
    "小学",
    "学一小",
    "OK 去",
    "99 学",
    "习 一",
]
#: Of these, all bytes are hanzi in GBK.
FOREIGN = [
    *("но", "но да", "С", "пункт", "Да", "и", "её", "ґ", "мʼята", "һин", "һаумыһығыҙ", "өч", "ә"),
    *("Ω", "αι", "γειά", "Κόσμε", "שלום", "שָׁלוֹם", "سلام", "مَرْحَبًا", "می\u200cخواهم", "հայ", "ދިވެހި", "ܐܒ"),
    *(
        "é",
        "è",
        "ü",
        "ñ",
        "naïve",
        "«oui»",
        "£5",
        "°C",
        "©",
        "½",
        "ação",
        "š",
        "ż",
        "ő",
        "ươ",
        "Việt",
        "fac\u0327ade",
        "Hawaiʻi",
        "ƙasa",
    ),
]


def test_a_client_is_taken_for_what_only_it_can_be() -> None:
    dialect = Dialect("gbk")
    assert dialect.read("é中".encode()) == "é中" and dialect.form is line_form("utf-8", "\r\n")
    # In neither.
    assert dialect.read(b"\xff\x20") == "\ufffd " and dialect.encoding == "utf-8"
    assert dialect.read("大家好".encode("gbk")) == "大家好"
    assert (dialect.encoding, dialect.form) == ("gbk", line_form("gbk", "\r\n"))
    # These bytes are UTF-8 as well: from now on they are read as GBK all the same.
    assert dialect.read("联通".encode("gbk")) == "联通"
    assert dialect.read(b"\xff\x20") == "\ufffd " and dialect.encoding == "gbk"
    # Not GBK, but UTF-8: a UTF-8 client had sent half a character before.
    assert dialect.read("中".encode()) == "中" and dialect.encoding == "utf-8"


def test_a_client_is_answered_with_its_own_line_end() -> None:
    dialect = Dialect("gbk")
    assert dialect.form is line_form("utf-8", "\r\n")
    dialect.adopt("\n")
    assert dialect.form is line_form("utf-8", "\n")
    dialect.read("好".encode("gbk"))
    dialect.adopt("\r\n")
    assert dialect.form is line_form("gbk", "\r\n")
    dialect.adopt(None, "utf-16-le")
    assert dialect.form is line_form("utf-16-le", "\r\n") and dialect.read("学é".encode()) == "学é"


@pytest.mark.parametrize("text", [*SHORT, "联通", "你好", "大家好 hello"])
@pytest.mark.parametrize("encoding", ["gbk", "utf-8"])
def test_a_first_line_is_read_in_the_encoding_in_which_someone_may_have_written_it(text: str, encoding: str) -> None:
    dialect = Dialect("gbk")
    assert dialect.read(b"/nick ann") == "/nick ann"
    assert dialect.read(text.encode(encoding)) == text and dialect.encoding == encoding


@pytest.mark.parametrize("text", FOREIGN)
def test_a_first_line_of_another_script_in_utf8_is_not_taken_for_gbk(text: str) -> None:
    dialect = Dialect("gbk")
    assert dialect.read(text.encode()) == text and dialect.encoding == "utf-8"


def test_no_letter_of_a_living_alphabet_is_taken_for_gbk() -> None:
    blocks = [
        (0xA1, 0x180),
        (0x386, 0x3CF),
        (0x400, 0x460),
        (0x490, 0x492),
        (0x531, 0x588),
        (0x5D0, 0x5EB),
        (0x620, 0x700),
    ]
    for letter in (chr(code) for block in blocks for code in range(*block)):
        if unicodedata.category(letter)[0] in "LPS":
            assert Dialect("gbk").read(letter.encode()) == letter


def test_what_was_only_likely_gives_way_to_what_is_certain() -> None:
    dialect = Dialect("gbk")
    # Of someone who writes GBK; the first line could not be told from Russian.
    assert dialect.read("小".encode("gbk")) == "С"
    assert dialect.read("学习".encode("gbk")) == "学习"
    assert dialect.read("你好".encode()) == "你好" and dialect.encoding == "utf-8"
    # From now on rare letters are what they are.
    assert dialect.read("ѧ".encode()) == "ѧ"


@settings(deadline=None)
@given(
    lines=st.lists(st.one_of(st.binary(), st.text().map(str.encode)), max_size=5),
    encoding=st.sampled_from(["gbk", "big5", "cp1251", "latin-1", "euc-kr"]),
)
def test_no_bytes_raise(lines: list[bytes], encoding: str) -> None:
    dialect = Dialect(encoding)
    for line in lines:
        dialect.read(line)
        assert dialect.encoding in ("utf-8", encoding)


@settings(deadline=None)
@given(
    text=st.text(st.characters(min_codepoint=0x400, max_codepoint=0x45F)),
    rest=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)),
)
def test_russian_stays_russian(text: str, rest: str) -> None:
    assert Dialect("gbk").read((text + rest).encode()) == text + rest
