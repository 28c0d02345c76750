"""Detects the encoding of one client from what it sends. Knows no transport."""

from __future__ import annotations

import re
import unicodedata

from netsvc.services.chat.text import BYTE_ORDER_MARK
from netsvc.services.chat.wording import line_form

__all__ = ["UTF8", "Dialect"]

UTF8 = "utf-8"

#: The characters that other encodings' letters look like in UTF-8 have two bytes.
_TWO_BYTES = re.compile("[\x00-\u07ff]*")
_FOREIGN = re.compile("[^\x00-\x7f]")

#: Of these scripts, the letters that most of their languages have. A text with others only is in another encoding.
_COMMON = {
    "LATIN": re.compile("[A-Za-z\u00aa-\u017f\u0192\u01a0\u01a1\u01af\u01b0\u01cd-\u01dc\u0218-\u021b\u0259]"),
    "GREEK": re.compile("[\u0384-\u03ce]"),
    "CYRILLIC": re.compile("[\u0400-\u045f\u0490\u0491]"),
}
#: Letters that no one has written for a hundred years, and no living language has among others: Cyrillic's of the
#: church, Greek's archaic ones and symbols with Coptic, Latin's of medieval manuscripts.
_HISTORIC = re.compile("[\u0363-\u036f\u0370-\u0373\u0376\u0377\u037b-\u037d\u03d0-\u03ff\u0460-\u0482\u0484-\u0487]")


class Dialect:
    """The encoding and line end of one client; `form` is how to answer it.

    It starts with UTF-8 and the line end of a terminal on a network, CR LF. The first line that is not in the current
    encoding but is in the other one switches to that. Short lines may be in both: `学习` in GBK is two letters in
    UTF-8, which nobody writes. Until a line was in one of the encodings only, such a line is taken for the other
    encoding if it is nothing but such letters in UTF-8.
    """

    def __init__(self, legacy: str) -> None:
        self._legacy = self._other = legacy
        self._end = "\r\n"
        #: Whether a line was in one of the encodings only.
        self._certain = False
        self._wide = False
        self.encoding = UTF8
        self.form = line_form(UTF8, self._end)

    def read(self, line: bytes) -> str:
        """Return the text of a line, without a byte order mark. What is in neither encoding is replaced (U+FFFD)."""
        text = line.decode(UTF8, "replace") if self._wide or line.isascii() else self._decode(line)
        return text.removeprefix(BYTE_ORDER_MARK)

    def _decode(self, line: bytes) -> str:
        if not self._certain:
            self._use(self._guess(line))
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError:
            pass
        try:
            text = line.decode(self._other)
        except UnicodeDecodeError:
            return line.decode(self.encoding, "replace")
        self._use(self._other)
        return text

    def _guess(self, line: bytes) -> str:
        """Return the likelier encoding of a line, and note whether it is certain."""
        try:
            text = line.decode(UTF8)
        except UnicodeDecodeError:
            try:
                line.decode(self._legacy)
            except UnicodeDecodeError:
                return self.encoding
            self._certain = True
            return self._legacy
        if not _TWO_BYTES.fullmatch(text) or not _is_east_asian(line, self._legacy):
            self._certain = True
            return UTF8
        return UTF8 if _is_likely(text) else self._legacy

    def _use(self, encoding: str) -> None:
        if encoding != self.encoding:
            self.encoding, self._other = encoding, self.encoding
            self.form = line_form(encoding, self._end)

    def adopt(self, end: str | None, wide: str | None = None) -> None:
        """Answer with this line end, if it is known, and in this encoding of UTF-16, if lines come from it as UTF-8."""
        if end is not None and end != self._end:
            self._end = end
            self.form = line_form(self.encoding, end)
        if wide is not None and not self._wide:
            self._wide = True
            self._use(wide)


def _is_east_asian(line: bytes, encoding: str) -> bool:
    """Return whether every letter of a line that is not in ASCII is one of East Asia, which has no case."""
    try:
        # The letters that GBK added are rare.
        text = line.decode("gb2312" if encoding in ("gbk", "gb18030") else encoding)
    except UnicodeDecodeError:
        return False
    foreign = _FOREIGN.findall(text)
    return 2 * len(foreign) == len(_FOREIGN.findall(line.decode("latin-1"))) and all(
        unicodedata.category(each) == "Lo" for each in foreign
    )


def _is_likely(text: str) -> bool:
    """Return whether someone may have written a text whose letters outside ASCII have two bytes in UTF-8."""
    if _HISTORIC.search(text):
        return False
    return all(_is_word(word, text) for word in text.split() if not word.isascii())


def _is_word(word: str, text: str) -> bool:
    """Return whether each character of a word is one of today, or stands among others of its script."""
    before = " "
    for character in word:
        category = unicodedata.category(character)
        if category == "Cn":
            return False
        if category[0] == "M":
            # Of letters and marks, only marks are in no script of their own.
            if not (before.isalpha() or unicodedata.category(before)[0] == "M"):
                return False
        elif not character.isascii():
            script = unicodedata.name(character, "").partition(" ")[0]
            if script == "MODIFIER":
                alone = not any(common.search(word) for common in _COMMON.values())
            elif script == "LATIN":
                # Words of Latin letters stand in texts of all scripts.
                alone = not _COMMON[script].search(word)
            else:
                alone = script in _COMMON and not _COMMON[script].search(text)
            if alone:
                return False
        before = character
    return True
