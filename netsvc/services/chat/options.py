"""The options of the chat service, most of them limits."""

from __future__ import annotations

from typing import Any

from netsvc.interfaces import Options
from netsvc.settings import byte_count, encoding, number, seconds, shown_as, whole_number

__all__ = ["ChatOptions", "legacy_encoding"]

#: Letters of many scripts. Few encodings have them all; each that one has must not be written in ASCII bytes.
_SAMPLES = "éßжא中あ가"


def _keeps_ascii(name: str) -> bool:
    """Tell whether ASCII is unchanged in an encoding, and nothing else is written in its bytes (as in UTF-7)."""
    for code in range(0x80):
        if bytes([code]).decode(name) != chr(code) or chr(code).encode(name) != bytes([code]):
            return False
    return all(encoded[0] >= 0x80 for letter in _SAMPLES if (encoded := letter.encode(name, "ignore")))


def legacy_encoding(value: Any) -> str:
    """Accept an encoding in which a line can be told from the next by its bytes, and a command by its slash."""
    name = encoding(value)
    try:
        accepted = _keeps_ascii(name)
    except UnicodeError:
        accepted = False
    if not accepted:
        raise ValueError("an encoding that has ASCII unchanged, such as gbk, big5, euc-jp or latin-1")
    return name


class ChatOptions(Options):
    """The options of the chat service."""

    optParameters = [
        [
            "encoding",
            None,
            "gbk",
            "What clients that do not send UTF-8 send, and are answered in",
            shown_as("ENCODING", legacy_encoding),
        ],
        # A terminal hands over at most 4,095 bytes a line.
        ["line-bytes", None, 4096, "Bytes of a line; a longer one is refused", byte_count(64, 65536)],
        ["name-length", None, 32, "Characters of a member's or room's name", whole_number(8, 256)],
        ["topic-length", None, 200, "Characters of a topic", whole_number(0, 4096)],
        ["members", None, 2000, "Members at a time", whole_number(1, 1_000_000)],
        [
            "silence",
            None,
            60.0,
            "Seconds of silence after which a member may lose its place to another, once the chat is full",
            seconds(0.1, 86400),
        ],
        ["rooms", None, 200, "Rooms at a time, empty ones that are remembered included", whole_number(1, 1_000_000)],
        ["member-rooms", None, 10, "Rooms that one member is in at a time", whole_number(1, 1000)],
        ["history", None, 20, "Messages of a room that who joins it gets to see", whole_number(0, 1000)],
        ["rate", None, 5.0, "Lines a second of one member, once the burst is used up", number(0.01, 1_000_000)],
        ["burst", None, 20, "Lines of one member at once", whole_number(1, 1_000_000)],
        [
            "backlog",
            None,
            250,
            "Lines of one member that may wait for the rate, before it is disconnected",
            whole_number(1, 1_000_000),
        ],
        [
            "send-bytes",
            None,
            128 * 1024,
            "Bytes that wait for a client that does not read, before it is disconnected",
            byte_count(1024, 1024**3),
        ],
    ]
    limits = (
        "line-bytes",
        "name-length",
        "topic-length",
        "members",
        "silence",
        "rooms",
        "member-rooms",
        "history",
        "rate",
        "burst",
        "backlog",
        "send-bytes",
    )
