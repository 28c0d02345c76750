"""Who may come, by lists of networks; and when, by the time of day."""

from __future__ import annotations

import errno
import ipaddress
import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from time import struct_time

from netsvc.errors import MistakeError
from netsvc.guard.peers import packed
from netsvc.limits import Hours
from netsvc.text import escape

__all__ = ["LONGEST_FILE", "MOST_LINES", "Access", "within"]

#: Bytes of a file of networks, and lines in it.
LONGEST_FILE = 1024 * 1024
MOST_LINES = 100_000
#: Wrong lines of one file that are shown.
_MOST_SHOWN = 5
#: Hosts whose verdict is remembered.
_REMEMBERED = 4096

_FORM = "an address or network such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32, or all"

#: A network: bytes of its addresses (4 or 16), its length in bits, and that many bits of it.
_Network = tuple[int, int, int]
_EVERYBODY: Sequence[_Network] = ((4, 0, 0), (16, 0, 0))


class Access:
    """Decides by address who may come.

    Of all networks in `allow` and `deny` that an address is in, the most specific decides, and `deny` where both have
    the same. Who is in none may come if there is no `allow`. An item is a network, `all`, or `@FILE`; a file has one
    a line, with comments after `#`, and is read here and never again. Raises `MistakeError` with the file and line of
    what is wrong.
    """

    def __init__(self, allow: Sequence[str] | None, deny: Sequence[str] | None) -> None:
        self._unmatched = "" if allow is None else "allow"
        verdicts: dict[tuple[int, int], dict[int, str]] = {}
        mistakes: list[str] = []
        # deny comes last, and so wins.
        for name, verdict, items in (("allow", "", allow), ("deny", "deny", deny)):
            for item in items or ():
                for size, length, bits in _read(name, item, mistakes):
                    verdicts.setdefault((size, length), {})[bits] = verdict
        if mistakes:
            raise MistakeError(mistakes)
        #: By the size of an address: its bits that do not matter, and the verdicts by the others; the longest first.
        self._tables = {
            bytes_: [
                (bytes_ * 8 - length, verdicts[size, length])
                for size, length in sorted(verdicts, reverse=True)
                if size == bytes_
            ]
            for bytes_ in (4, 16)
        }
        # A list of 100,000 networks may have all of 128 lengths.
        self.refusal = lru_cache(_REMEMBERED)(self._refusal)

    def _refusal(self, host: str) -> str:
        """Return which list refuses a host, `allow` or `deny`; an empty string if it may come."""
        address = packed(host)
        if address is None:
            # It can be in no list; nobody gets past one by having no address.
            return self._unmatched or "deny"
        number = int.from_bytes(address)
        for shift, verdicts in self._tables[len(address)]:
            verdict = verdicts.get(number >> shift)
            if verdict is not None:
                return verdict
        return self._unmatched


def _read(name: str, item: str, mistakes: list[str]) -> Sequence[_Network]:
    """Return the networks of one item of a list; what is wrong goes to `mistakes`."""
    if not item.startswith("@"):
        try:
            return _networks(item)
        except ValueError:
            mistakes.append(f"{name} {escape(item)}: write {_FORM}")
            return ()
    path = item[1:]
    what = f"{name} @{escape(path)}"
    try:
        data = _content(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        mistakes.append(f"{what}: {reason}; name a text file that this user may read, with one network a line")
        return ()
    lines = data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").decode("utf-8", "surrogateescape").split("\n")
    if len(data) > LONGEST_FILE or len(lines) > MOST_LINES:
        mistakes.append(
            f"{what}: longer than {LONGEST_FILE} bytes or {MOST_LINES} lines; join networks that stand side by side"
        )
        return ()
    found: list[_Network] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        try:
            found += _networks(word) if word else ()
        except ValueError:
            wrong.append(f"{escape(path)}:{number}: {escape(word, 60)} ({name}): write {_FORM}")
    mistakes += wrong[:_MOST_SHOWN]
    if len(wrong) > _MOST_SHOWN:
        mistakes.append(f"{escape(path)}: {len(wrong) - _MOST_SHOWN} more such lines")
    return found


def _content(path: str) -> bytes:
    """Read a file that may be anything, and of one that is too long a byte more than it may have."""
    # A FIFO must not stop the process until somebody writes to it.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(LONGEST_FILE + 1)


def _networks(word: str) -> Sequence[_Network]:
    if word == "all":
        return _EVERYBODY
    place, slash, length = word.partition("/")
    place = place.partition("%")[0]
    # In place of ipaddress, which takes a second for the longest file.
    if not slash or (length.isascii() and length.isdecimal() and len(length) <= 3):
        try:
            address = inet_pton(AF_INET6 if ":" in place else AF_INET, place)
        except OSError:
            raise ValueError from None
        bits = int(length) if slash else len(address) * 8
        if bits > len(address) * 8:
            raise ValueError
    else:
        # With a mask.
        network = ipaddress.ip_network(word, strict=False)
        address, bits = network.network_address.packed, network.prefixlen
    if len(address) == 16 and bits >= 96 and len(plain := packed(place) or b"") == 4:
        address, bits = plain, bits - 96
    return ((len(address), bits, int.from_bytes(address) >> (len(address) * 8 - bits)),)


def within(hours: Sequence[Hours], moment: struct_time) -> bool:
    """Tell whether a local time is in one of the spans."""
    minute, day = moment.tm_hour * 60 + moment.tm_min, moment.tm_wday
    for span in hours:
        if span.start < span.end:
            if day in span.days and span.start <= minute < span.end:
                return True
        elif (day in span.days and minute >= span.start) or ((day - 1) % 7 in span.days and minute < span.end):
            return True
    return False
