"""Reads the file name that a client sends, whatever its program adds to it. Touches no transport and no file.

A client may send a name in UTF-8, in a legacy encoding such as GBK or in UTF-16, composed or decomposed, with NULs or
blanks after it, in quotes, with backslashes, or after telnet commands. Often the bytes do not tell which: those of
`学习` in GBK are valid UTF-8 as well. So a name has several readings, and the first one that is a file is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain, islice, product, zip_longest
from unicodedata import normalize

from netsvc.services.files.file import FileRefusedError

#: Readings of one name. A missing name costs a system call for each of them.
MOST_READINGS = 32
#: Forms of one reading whose parts may each be composed (NFC) or decomposed (NFD).
_MOST_FORMS = 8

_UTF8_MARK, _UTF16_MARK = b"\xef\xbb\xbf", b"\xff\xfe"
#: A telnet command (RFC 854): about an option, a subnegotiation, or of one byte. The numbers of options are low, which
#: tells DONT from the mark of UTF-16 before most letters.
_COMMAND = rb"\xff(?:[\xfb-\xfe][\x00-\x31\x8a-\x8c\xff]|\xfa(?:[^\xff]|\xff[^\xf0]){0,64}+\xff\xf0|[\xf1-\xf9\xff])"
_TELNET = re.compile(_COMMAND, re.DOTALL)
#: What comes before the line end. An option may have the number of LF, and a subnegotiation contain it.
_LINE = re.compile(rb"(?:[^\n\xff]++|" + _COMMAND + rb"|\xff(?!\xfa))*+(?=\n)", re.DOTALL)
#: In UTF-16, the byte LF is also a half of letters such as 上.
_UTF16_LINE = re.compile(rb"(?:(?!\n\0)..)*+(?=\n\0)", re.DOTALL)
#: UTF-16 without a mark, if the first letter is in ASCII or all others are.
_UTF16 = re.compile(rb"(?:[^\0]\0|..)(?:[^\0]\0)+", re.DOTALL)
#: A name that can be read in one way only.
_PLAIN = re.compile(rb"[\w.+,@~-](?:[\w./+,@~ -]*[\w.+,@~-])?", re.ASCII)
_QUOTED = re.compile(rb"([\"'])(.*)\1", re.DOTALL)


def whole_name(data: bytes, limit: int) -> bytes | None:
    """Return the name in `data`, the first bytes of a connection, if it is complete; else use a `NameReader`."""
    end = data.find(b"\n", 0, limit + 1)
    return None if end < 0 or data[0] == 0xFF else data[:end].removesuffix(b"\r")


class NameReader:
    """Collects one name that ends at LF or CRLF. It keeps at most `limit` + 2 bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()

    @property
    def name(self) -> bytes:
        """The bytes so far, without a CR at the end: the whole name, if no more follow."""
        return bytes(self._kept.removesuffix(b"\r"))

    def feed(self, data: bytes) -> bool:
        """Take the next bytes and return whether `name` is complete; what follows its end is dropped.

        A name with a NUL is complete at the limit: some programs send a buffer, with the name at its beginning. Raises
        `FileRefusedError` as soon as any other name is longer than the limit.
        """
        kept = self._kept
        # Room for CR LF, and for one byte that makes a name too long.
        kept += data[: self._limit + 2 - len(kept)]
        line = (_UTF16_LINE if _is_marked(kept) else _LINE).match(kept)
        if line is not None:
            del kept[line.end() :]
        if len(self.name) > self._limit:
            if b"\0" not in kept:
                raise FileRefusedError("name too long")
            return True
        return line is not None


def _is_marked(data: bytes | bytearray) -> bool:
    """Return whether bytes begin with the mark of UTF-16, little-endian, rather than with telnet's DONT."""
    return data.startswith(_UTF16_MARK) and (data[3:4] == b"\0" or not _TELNET.match(data))


def readings(name: bytes, encoding: str) -> list[bytes]:
    """Return the paths that a name may mean, as bytes on disk: the likely ones first, at most `MOST_READINGS`.

    `encoding` is the one of names that are not UTF-8. An empty path is none of them.
    """
    if _PLAIN.fullmatch(name):
        return [name]
    # The first spelling of every text, then the second one of each.
    spelled = zip_longest(*(_spellings(text) for text in dict.fromkeys(_texts(name, encoding))))
    return list(islice(dict.fromkeys(filter(None, chain.from_iterable(spelled))), MOST_READINGS))


def shown(name: bytes, encoding: str) -> bytes:
    """Return a name as UTF-8 for people to read, if it is text, else as it is."""
    plain = _until_nul(name)
    return plain if _recode(plain, "utf-8") else _recode(plain, encoding) or name


def _texts(name: bytes, encoding: str) -> Iterator[bytes]:
    """Read a name in each encoding."""
    if _is_marked(name):
        yield _recode(name.removeprefix(_UTF16_MARK), "utf-16-le")
    elif _UTF16.fullmatch(name):
        yield _recode(name, "utf-16-le")
    plain = [_until_nul(each) for each in (name, _TELNET.sub(b"", name))]
    yield from plain
    for each in plain:
        yield _recode(each, encoding)
    if b"\0" in name:
        yield _until_nul(_recode(name[: len(name) & ~1], "utf-16-le"))
    # A name on the disk may be in the other encoding as well.
    yield _recode(plain[0], "utf-8", encoding)


def _until_nul(name: bytes) -> bytes:
    return name.partition(b"\0")[0].removeprefix(_UTF8_MARK)


def _recode(name: bytes, encoding: str, target: str = "utf-8") -> bytes:
    try:
        return name.decode(encoding).encode(target)
    except UnicodeError:
        return b""


def _spellings(name: bytes) -> Iterator[bytes]:
    """Yield a name as it is, and without what its program may have added."""
    spelled = [name]
    changes: tuple[Callable[[bytes], bytes], ...] = (
        lambda each: each.lstrip(b"/"),
        bytes.strip,
        lambda each: _QUOTED.sub(rb"\2", each),
        lambda each: each.replace(b"\\", b"/"),
    )
    for change in changes:
        spelled += [change(each) for each in spelled]
    for each in dict.fromkeys(spelled):
        yield from _forms(each)


def _forms(name: bytes) -> Iterator[bytes]:
    """Yield a name as it is, and with its parts composed and decomposed (Unicode's NFC and NFD)."""
    yield name
    if name.isascii():
        return
    try:
        parts = name.decode().split("/")
    except UnicodeDecodeError:
        return
    forms = product(*(dict.fromkeys((part, normalize("NFC", part), normalize("NFD", part))) for part in parts))
    for form in islice(forms, _MOST_FORMS):
        yield "/".join(form).encode()
