"""What the reply service answers. Knows no wire."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from twisted.python import usage

from netsvc.datagram import LoopGuard
from netsvc.interfaces import Context, Options
from netsvc.settings import encoding

__all__ = ["ReplyCore", "ReplyOptions"]

#: The tutorial servers' own words.
STREAM_TEXT = "hello, tcp client!"
DATAGRAM_TEXT = "i am udp,i got it"
#: Characters; in any encoding it fits a datagram.
TEXT_LIMIT = 1024


def _reply_text(value: str) -> str:
    if len(value) > TEXT_LIMIT:
        raise ValueError(f"a text of at most {TEXT_LIMIT} characters")
    return value


class ReplyOptions(Options):
    """The options of the reply service."""

    optParameters = [
        [
            "text",
            None,
            None,
            f"The answer (default: '{STREAM_TEXT}' over a stream, '{DATAGRAM_TEXT}' over datagrams)",
            _reply_text,
        ],
        ["encoding", None, "utf-8", "The text encoding of the answer, such as gbk", encoding],
    ]
    optFlags = [
        ["amplify", None, "Let a datagram be answered with a longer one (a forged source address makes that an attack)"]
    ]
    limits = ("amplify",)

    def postOptions(self) -> None:
        """Reject a text that the encoding cannot express."""
        for text in (STREAM_TEXT, DATAGRAM_TEXT) if self["text"] is None else (self["text"],):
            try:
                text.encode(self["encoding"])
            except UnicodeError:
                raise usage.UsageError(
                    f"--encoding {self['encoding']} cannot express --text {text!r}: choose another of either"
                ) from None


class ReplyCore(LoopGuard):
    """Holds the answer, encoded once."""

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self._encoding = options["encoding"]
        self._datagram_text = options["text"] if options["text"] is not None else DATAGRAM_TEXT
        self._amplify = bool(options["amplify"])
        # Whoever runs it has taken that on himself: the host is not to keep answers short either.
        self.verifies_peers = self._amplify
        self.stream_answer = (options["text"] if options["text"] is not None else STREAM_TEXT).encode(self._encoding)
        self.datagram_answer = self._datagram_text.encode(self._encoding)
        # The sizes of its beginnings, by their number of characters; never falling, so that they can be searched.
        self._sizes = list(
            accumulate((len(self._beginning(count)) for count in range(len(self._datagram_text) + 1)), max)
        )

    def _beginning(self, characters: int) -> bytes:
        return self._datagram_text[:characters].encode(self._encoding)

    def answer_within(self, size: int) -> bytes:
        """Return the answer to a datagram of `size` bytes: cut to that, between two characters, unless it may grow."""
        if self._amplify or len(self.datagram_answer) <= size:
            return self.datagram_answer
        fitting = bisect_right(self._sizes, size)
        return self._beginning(fitting - 1) if fitting else b""

    @staticmethod
    def asks_to_leave(data: bytes) -> bool:
        """Tell whether a chunk has a line that is the word `exit`, in any case and with any space around it."""
        # Looked for first, because it is quick: to split thousands of short lines is not.
        return b"exit" in data.lower() and any(line.strip().lower() == b"exit" for line in data.splitlines())
