"""Lists of networks: parses them, and matches addresses against `allow` and `deny` lists."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton

from netsvc.base.errors import UserError
from netsvc.base.files import read_file
from netsvc.base.hosts import packed
from netsvc.base.text import escape

#: The largest network file, in bytes and in lines.
LONGEST_FILE = 1024 * 1024
MOST_LINES = 100_000
#: Invalid lines of one file that are reported.
_MOST_SHOWN = 5
#: Hosts whose verdict is cached.
_VERDICTS_CACHED = 4096

_FORM = "an address or network such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32, or all"

#: A network: bytes of its addresses (4 or 16), its length in bits, and that many bits of it.
_Network = tuple[int, int, int]
_ALL_NETWORKS: Sequence[_Network] = ((4, 0, 0), (16, 0, 0))


class Access:
    """The `allow` and `deny` lists of a level, which admit or refuse an address.

    The most specific network that contains the address decides; if both lists have the same network, `deny` wins. An
    address in no network is admitted if there is no `allow` list. An item is a network, `all`, or `@FILE`. A file has
    one network per line, with comments after `#`, and is read only by this constructor. Raises `UserError` with the
    file and line of each error.
    """

    def __init__(self, allow: Sequence[str] | None, deny: Sequence[str] | None) -> None:
        self._unmatched = "" if allow is None else "allow"
        verdicts: dict[tuple[int, int], dict[int, str]] = {}
        errors: list[str] = []
        # `deny` is read last, so that it wins.
        for name, verdict, items in (("allow", "", allow), ("deny", "deny", deny)):
            for item in items or ():
                for size, length, bits in _read(name, item, errors):
                    verdicts.setdefault((size, length), {})[bits] = verdict
        if errors:
            raise UserError(errors)
        #: By address size: the number of host bits, and the verdicts by network bits; the longest prefix first.
        self._tables = {
            bytes_: [
                (bytes_ * 8 - length, verdicts[size, length])
                for size, length in sorted(verdicts, reverse=True)
                if size == bytes_
            ]
            for bytes_ in (4, 16)
        }
        # A lookup may try every prefix length, up to 128.
        self.refusal = lru_cache(_VERDICTS_CACHED)(self._refusal)

    def _refusal(self, host: str) -> str:
        """Return which list refuses a host, `allow` or `deny`; an empty string if none does."""
        address = packed(host)
        if address is None:
            # An unknown address is in no network, and is refused by any list.
            return self._unmatched or "deny"
        number = int.from_bytes(address)
        for shift, verdicts in self._tables[len(address)]:
            verdict = verdicts.get(number >> shift)
            if verdict is not None:
                return verdict
        return self._unmatched


def _read(name: str, item: str, errors: list[str]) -> Sequence[_Network]:
    """Return the networks of one item of a list; append its errors to `errors`."""
    if not item.startswith("@"):
        try:
            return parse_network(item)
        except ValueError:
            errors.append(f"{name} {escape(item)}: write {_FORM}")
            return ()
    path = item[1:]
    what = f"{name} @{escape(path)}"
    try:
        data = read_file(path, LONGEST_FILE)
    except OSError as error:
        errors.append(f"{what}: {error.strerror}; name a readable text file with one network per line")
        return ()
    lines = data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").decode("utf-8", "surrogateescape").split("\n")
    if len(lines) > MOST_LINES:
        errors.append(f"{what}: longer than {MOST_LINES} lines; merge adjacent networks")
        return ()
    found: list[_Network] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        try:
            found += parse_network(word) if word else ()
        except ValueError:
            wrong.append(f"{escape(path)}:{number}: {escape(word, 60)} ({name}): write {_FORM}")
    errors += wrong[:_MOST_SHOWN]
    if len(wrong) > _MOST_SHOWN:
        errors.append(f"{escape(path)}: {len(wrong) - _MOST_SHOWN} more such lines")
    return found


def parse_network(word: str) -> Sequence[_Network]:
    """Parse an address, a network or `all`. Raises `ValueError`."""
    if word == "all":
        return _ALL_NETWORKS
    place, slash, length = word.partition("/")
    place = place.partition("%")[0]
    # The ipaddress module would take a second for the longest file.
    if not slash or (length.isascii() and length.isdecimal() and len(length) <= 3):
        try:
            address = inet_pton(AF_INET6 if ":" in place else AF_INET, place)
        except OSError:
            raise ValueError from None
        bits = int(length) if slash else len(address) * 8
        if bits > len(address) * 8:
            raise ValueError
    else:
        # With a netmask.
        network = ipaddress.ip_network(word, strict=False)
        address, bits = network.network_address.packed, network.prefixlen
    if len(address) == 16 and bits >= 96 and len(plain := packed(place) or b"") == 4:
        address, bits = plain, bits - 96
    return ((len(address), bits, int.from_bytes(address) >> (len(address) * 8 - bits)),)
