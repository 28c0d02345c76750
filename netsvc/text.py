"""Makes what a peer sent safe to show in a log or on a terminal."""

from __future__ import annotations

import unicodedata

__all__ = ["escape", "host_port", "is_unsafe", "peer_name", "plain"]

#: Characters that reorder or hide what stands around them: bidirectional controls (UAX #9, section 2)
#: and the line and paragraph separators, which some terminals and log readers break a line at.
_REORDERING = frozenset("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_unsafe(character: str) -> bool:
    """Tell whether a terminal may act on `character` rather than show it."""
    return character in _REORDERING or unicodedata.category(character) in ("Cc", "Cs")


def escape(value: str | bytes, limit: int = 200) -> str:
    r"""Render `value` so that one line of it stays one line and no terminal obeys it.

    Control, bidirectional and undecodable characters become backslash escapes (`\x1b`), and so do the
    backslash and the quotation mark, so that a quoted name can be told from what follows it. At most
    `limit` characters of the value are shown; what was cut off is counted.
    """
    # Not "backslashreplace": its backslashes could not be told from those that the peer sent.
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    # As nearly every value is. All that is unsafe is not printable to Python; not all that is not is unsafe.
    if len(text) <= limit and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    shown = "".join(map(_escape_character, text[:limit]))
    cut = len(text) - limit
    return f"{shown}… ({cut} more)" if cut > 0 else shown


def _escape_character(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in '\\"':
        return f"\\{character}"
    return character.encode("unicode_escape").decode("ascii") if is_unsafe(character) else character


def plain(text: str) -> str:
    """Return a line of prose without what a terminal may act on; unlike `escape`, quotation marks stay as they are."""
    return "".join(f"\\x{ord(character):02x}" if is_unsafe(character) else character for character in text)


def peer_name(address: object) -> str:
    """Name the far end of a connection for a log line: `192.0.2.1:4000`, `[2001:db8::1]:4000`, a path, `-`.

    An IPv4 peer of a socket that serves IPv6 as well (`::ffff:192.0.2.1`, RFC 4291, section 2.5.5.2) is
    named by its IPv4 address.
    """
    host = getattr(address, "host", None)
    if host is None:
        path = getattr(address, "name", None)
        return escape(path) if path else "-"
    port = getattr(address, "port", 0)
    # Escaped as well: Twisted takes the address in a PROXY header for what the header says.
    host = escape(str(host))
    return host_port(host.removeprefix("::ffff:") if "." in host else host, port)


def host_port(host: str, port: int) -> str:
    """Write a host and a port as one word: `192.0.2.1:4000`, `[2001:db8::1]:4000`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
