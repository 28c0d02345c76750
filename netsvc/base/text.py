"""Makes what a peer sent safe to show in a log or on a terminal."""

from __future__ import annotations

import unicodedata

#: The name of a peer that the system does not name, such as the client of a UNIX socket.
UNKNOWN_PEER = "an unknown peer"

#: Characters that reorder or hide the text around them: bidirectional controls (UAX #9, section 2)
#: and the line and paragraph separators, which some terminals and log readers break a line at.
_REORDERING = frozenset("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_unsafe(character: str) -> bool:
    """Return whether a terminal may act on `character` instead of showing it."""
    return character in _REORDERING or unicodedata.category(character) in ("Cc", "Cs")


def escape(value: str | bytes, limit: int = 200) -> str:
    r"""Escape `value` so that it stays on one line and no terminal acts on it.

    Control, bidirectional and undecodable characters become backslash escapes (`\x1b`), and so do the
    backslash and the quotation mark, so that a quoted name can be distinguished from what follows it. At most
    `limit` characters of the value are shown; the rest is counted.
    """
    # Not "backslashreplace": its backslashes would look like backslashes that the peer sent.
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    # The usual case. Every unsafe character is unprintable to Python, but not the reverse.
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
    """Escape only what a terminal may act on; unlike `escape`, quotation marks are unchanged."""
    return "".join(f"\\x{ord(character):02x}" if is_unsafe(character) else character for character in text)


def peer_name(address: object) -> str:
    """Return the peer of a connection as a log line has it: `192.0.2.1:4000`, `[2001:db8::1]:4000`, a path, `-`.

    An IPv4 peer of a socket that serves IPv6 as well (`::ffff:192.0.2.1`, RFC 4291, section 2.5.5.2) is
    named by its IPv4 address.
    """
    host = getattr(address, "host", None)
    if host is None:
        path = getattr(address, "name", None)
        return escape(path) if path else "-"
    port = getattr(address, "port", 0)
    # Escaped as well: Twisted does not check the address in a PROXY header.
    host = escape(str(host))
    return host_port(host.removeprefix("::ffff:") if "." in host else host, port)


def host_port(host: str, port: int | None) -> str:
    """Write a host and a port: `192.0.2.1:4000`, `[2001:db8::1]:4000`. None is no port, of a UNIX socket."""
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def shown_peer(peer: str, port: int | None = None) -> str:
    """Write a peer as limits and log lines name it: a host, which a PROXY header may choose, or a user."""
    return host_port(escape(peer) or UNKNOWN_PEER, port)
