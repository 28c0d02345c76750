"""Quote of the day (RFC 865): a short message, another one every day."""

from __future__ import annotations

from pathlib import Path

from twisted.python import usage

from netsvc.base.text import escape, is_unsafe
from netsvc.errors import UserError
from netsvc.interfaces import Context, Options
from netsvc.service import Service
from netsvc_classic.message import Message, MessageCore, MessageDatagram

__all__ = ["service"]

#: Bytes: a quote "should be less than 512 characters", and so it fits any datagram as well.
LONGEST_QUOTE = 511
#: Bytes of the file of quotes.
LARGEST_FILE = 1024 * 1024
SECONDS_A_DAY = 86400

QUOTES = (
    "Be conservative in what you do, be liberal in what you accept from others.\n    -- Jon Postel, RFC 793",
    "The network is reliable.\n    -- the first fallacy of distributed computing",
    "It is always possible to add another level of indirection.\n    -- RFC 1925",
)


class QotdOptions(Options):
    """The options of the quote of the day."""

    optParameters = [["file", None, None, "A UTF-8 file of quotes, separated by lines that are just %"]]


def read_quotes(path: str) -> list[bytes]:
    """Read a file of quotes. Raises `UserError` for a file that cannot be served, with a line for every reason."""
    named = f"qotd file {escape(path)}"
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        quotes = [quote.strip("\r\n") for quote in data.decode("utf-8").replace("\r\n", "\n").split("\n%\n")]
    except OSError as error:
        raise UserError([f"{named}: {error.strerror}; give another --qotd-file"]) from None
    except UnicodeDecodeError as error:
        raise UserError([f"{named}: byte {error.start + 1} is not UTF-8; save it as UTF-8"]) from None
    if len(data) > LARGEST_FILE:
        raise UserError([f"{named}: longer than {LARGEST_FILE} bytes; split it"])
    lines = [_encode(quote) for quote in quotes if quote.strip()]
    errors = [f"{named}, quote {number}: {_fault(line)}" for number, line in enumerate(lines, 1) if _fault(line)]
    if not lines:
        errors = [f"{named}: no quote in it; write one"]
    if errors:
        raise UserError(errors)
    return lines


def _encode(quote: str) -> bytes:
    return "".join(f"{line}\r\n" for line in quote.split("\n")).encode("utf-8")


def _fault(line: bytes) -> str | None:
    if len(line) > LONGEST_QUOTE:
        return f"{len(line)} bytes long; the limit is {LONGEST_QUOTE}"
    if any(is_unsafe(character) for character in line.decode("utf-8") if character not in "\r\n\t"):
        return "has a control character; remove it"
    return None


class Qotd(MessageCore):
    """The quotes, from the file if one is given. The file is read when the service starts."""

    quotes: list[bytes] = [_encode(quote) for quote in QUOTES]

    def __init__(self, options: usage.Options, context: Context) -> None:
        super().__init__(options, context)
        self._sent = context.metrics.counter("quotes", "Quotes that were sent, by number", ["number"])

    def check(self) -> None:
        """Raise `UserError` if the file cannot be served."""
        self._read()

    def start(self) -> None:
        """Read the file."""
        self.quotes = self._read()

    def _read(self) -> list[bytes]:
        path = self.options["file"]
        return self.quotes if path is None else read_quotes(path)

    def message(self) -> bytes:
        """Return the quote of this day, which begins at midnight UTC."""
        number = int(self.now() // SECONDS_A_DAY) % len(self.quotes)
        self._sent.labels(number + 1).inc()
        return self.quotes[number]


service = Service(
    "qotd",
    "Send the quote of the day (RFC 865)",
    options=QotdOptions,
    core=Qotd,
    streams={"tcp": Message},
    datagrams={"udp": MessageDatagram},
    parallel=True,
)
