"""The options of the chat service, most of them limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from netsvc.base.errors import UserError
from netsvc.base.files import read_file
from netsvc.base.text import escape
from netsvc.interfaces import Options
from netsvc.options import byte_count, encoding, number, seconds, shown_as, whole_number
from netsvc.services.chat.names import ChatError, check_name
from netsvc.services.chat.store.redis_link import RedisAddress, parse_address

__all__ = ["ChatOptions", "legacy_encoding", "name_list"]

#: In a list of names, and in one of these.
_MOST_NAMES, _LONGEST_NAME = 1000, 256

#: Letters of many scripts. An encoding need not have them all, but must not write them in ASCII bytes.
_SAMPLES = "éßжא中あ가"


def _keeps_ascii(name: str) -> bool:
    """Return whether an encoding leaves ASCII unchanged and writes nothing else in its bytes (as UTF-7 does)."""
    for code in range(0x80):
        if bytes([code]).decode(name) != chr(code) or chr(code).encode(name) != bytes([code]):
            return False
    return all(encoded[0] >= 0x80 for letter in _SAMPLES if (encoded := letter.encode(name, "ignore")))


def legacy_encoding(value: Any) -> str:
    """Accept an encoding in which line ends and the slash of a command have their ASCII bytes, and no others."""
    name = encoding(value)
    try:
        accepted = _keeps_ascii(name)
    except UnicodeError:
        accepted = False
    if not accepted:
        raise ValueError("an encoding that has ASCII unchanged, such as gbk, big5, euc-jp or latin-1")
    return name


def name_list(value: Any) -> tuple[str, ...]:
    """Accept names with commas between them, or none."""
    names = [each.strip() for each in str(value).split(",")] if str(value).strip() else []
    try:
        if len(names) > _MOST_NAMES:
            raise ChatError(f"there are {len(names)} names")
        return tuple(check_name(name, _LONGEST_NAME) for name in names)
    except ChatError as error:
        raise ValueError(f"up to {_MOST_NAMES} names with commas between them: {error}") from None


#: As a browser sends it (RFC 6454, section 7).
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@,]+")


def origin_list(value: Any) -> tuple[str, ...]:
    """Accept origins of pages with commas between them, or none."""
    origins = [each.strip() for each in str(value).split(",")] if str(value).strip() else []
    if len(origins) > _MOST_NAMES or not all(_ORIGIN.fullmatch(each) for each in origins):
        raise ValueError(f"up to {_MOST_NAMES} origins such as https://chat.example with commas between them, or *")
    return tuple(origins)


_MEMORY = "memory"
_SQLITE = "sqlite:"


def store_place(value: Any) -> str | RedisAddress:
    """Accept where messages are kept: `memory`, `sqlite:` and a path, or the URL of a Redis."""
    text = str(value)
    if text.startswith("redis"):
        return parse_address(text)
    if text != _MEMORY and not (text.startswith(_SQLITE) and text != _SQLITE and "\0" not in text):
        raise ValueError("memory, sqlite:FILE, or redis://HOST")
    return text


def server_name(value: Any) -> str:
    """Accept the name of an IRC server."""
    text = str(value)
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", text, re.ASCII):
        raise ValueError("a name such as chat.example.org")
    return text


def read_password(path: Path) -> str:
    """Return the password in a file. Raises `UserError`."""
    shown = escape(str(path), 4096)
    try:
        password = read_file(path, 65536).decode().strip()
    except OSError as error:
        raise UserError([f"chat irc-password {shown}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        password = ""
    if not 0 < len(password) <= _LONGEST_NAME or not password.isprintable():
        raise UserError([f"chat irc-password {shown}: a password is a line of 1 to {_LONGEST_NAME} characters"])
    return password


class ChatOptions(Options):
    """The options of the chat service."""

    optParameters: list[list[Any]] = [
        [
            "encoding",
            None,
            "gbk",
            "Encoding of clients without UTF-8",
            shown_as("ENCODING", legacy_encoding),
        ],
        [
            "store",
            None,
            None,
            "Where messages are kept: memory, sqlite:FILE or redis://HOST (default: a file in the --state directory)",
            shown_as("STORE", store_place),
        ],
        # A terminal hands over at most 4,095 bytes a line.
        ["line-bytes", None, 4096, "Bytes in a line; longer is refused", byte_count(64, 65536)],
        ["name-length", None, 32, "Characters in a member's or room's name", whole_number(8, 256)],
        ["topic-length", None, 200, "Characters in a topic", whole_number(0, 4096)],
        [
            "reserved",
            None,
            None,
            "More names that no member can have, with commas between them",
            shown_as("NAMES", name_list),
        ],
        [
            "operators",
            None,
            None,
            "Accounts that operate every room, with commas between them",
            shown_as("NAMES", name_list),
        ],
        [
            "irc-name",
            None,
            "netsvc.chat",
            "Name of the server and of its network that clients of IRC are told",
            shown_as("NAME", server_name),
        ],
        [
            "irc-password",
            None,
            None,
            "File with the password that clients of IRC must send (PASS)",
            Path,
        ],
        [
            "irc-sts-port",
            None,
            None,
            "Port of the TLS listener that clients of IRC use from then on (STS)",
            whole_number(1, 65535),
        ],
        [
            "web-origins",
            None,
            None,
            "Origins of other pages that may connect, with commas between them; * for any",
            shown_as("ORIGINS", origin_list),
        ],
        ["members", None, 2000, "Members at a time", whole_number(1, 1_000_000)],
        [
            "silence",
            None,
            60.0,
            "Seconds of silence after which a member of a full chat may lose its place",
            seconds(0.1, 86400),
        ],
        [
            "peer-members",
            None,
            None,
            "Members of one address that keep their places in a full chat [default: a tenth of members, at most 50]",
            whole_number(1, 1_000_000),
        ],
        ["rooms", None, 200, "Rooms, including remembered empty ones", whole_number(1, 1_000_000)],
        ["member-rooms", None, 10, "Rooms that one member can be in", whole_number(1, 1000)],
        [
            "peer-rooms",
            None,
            None,
            "Rooms of one address that are kept when all are in use [default: a tenth of rooms, at most 20]",
            whole_number(1, 1_000_000),
        ],
        ["history", None, 20, "Last messages of a room that are shown on joining", whole_number(0, 1000)],
        ["keep-messages", None, 10_000, "Messages of each room that are kept", whole_number(0, 100_000_000)],
        ["keep-days", None, 0.0, "Days that a message is kept; 0 for ever", number(0, 36500)],
        ["accounts", None, 10_000, "Accounts", whole_number(0, 10_000_000)],
        ["rate", None, 5.0, "Lines a second from a member, after burst", number(0.01, 1_000_000)],
        ["burst", None, 20, "Lines from one member at once", whole_number(1, 1_000_000)],
        [
            "backlog",
            None,
            250,
            "Lines from a member that may wait; with more it is disconnected",
            whole_number(1, 1_000_000),
        ],
        [
            "send-bytes",
            None,
            256 * 1024,
            "Bytes that may wait for a client; with more it is disconnected",
            byte_count(1024, 1024**3),
        ],
        [
            "send-rate",
            None,
            64 * 1024,
            "Bytes a second that members together can send to clients that are behind",
            byte_count(1024, 1024**3),
        ],
    ]
    optFlags: list[list[Any]] = [
        ["sync", None, "Keep messages in SQLite through a loss of power, too"],
        ["plain-passwords", None, "Take passwords without TLS, from other machines, too"],
    ]
    #: All but the encoding, the store, names, and what clients of IRC are told.
    limits = tuple(
        entry[0]
        for entry in optParameters
        if entry[0] not in {"encoding", "store", "reserved", "operators"} and not entry[0].startswith(("irc-", "web-"))
    )
