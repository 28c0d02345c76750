"""The reply service: answers everything with a fixed text, as the servers of socket tutorials do."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from twisted.python import usage

from netsvc.datagram import AnsweringProtocol, longest_answer
from netsvc.interfaces import Context, Options
from netsvc.options import encoding
from netsvc.service import PlainCore, Service
from netsvc.stream import StreamProtocol

__all__ = ["Reply", "ReplyCore", "ReplyDatagram", "ReplyOptions", "service"]

#: The default answers, as the tutorial servers give them.
STREAM_TEXT = "hello, tcp client!"
DATAGRAM_TEXT = "i am udp,i got it"
#: Characters of an answer. In any encoding it fits a datagram.
TEXT_LIMIT = 1024
#: Bytes of an unfinished line that a connection keeps: room for `exit` with much space around it.
LINE_LIMIT = 64


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
        ["amplify", None, "Let a short datagram be answered with the longest text (forged, it makes that an attack)"]
    ]
    limits = ("amplify",)

    def postOptions(self) -> None:
        """Reject a text that the encoding cannot express."""
        for text in (STREAM_TEXT, DATAGRAM_TEXT) if self["text"] is None else (self["text"],):
            try:
                text.encode(self["encoding"])
            except UnicodeError:
                raise usage.UsageError(
                    f"--encoding {self['encoding']} cannot express --text {text!r}; change one of them"
                ) from None


class ReplyCore(PlainCore):
    """The answers, encoded once."""

    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        text, self._encoding = options["text"], options["encoding"]
        self._datagram_text = DATAGRAM_TEXT if text is None else text
        self._amplify = bool(options["amplify"])
        # With --amplify the user has accepted long answers: netsvc must not cut them either.
        self.verifies_peers = self._amplify
        self.stream_answer = (STREAM_TEXT if text is None else text).encode(self._encoding)
        self.datagram_answer = self._datagram_text.encode(self._encoding)
        # The encoded size of each beginning of the text, made non-decreasing so that it can be searched.
        self._sizes = list(accumulate((len(self._beginning(n)) for n in range(len(self._datagram_text) + 1)), max))

    def _beginning(self, characters: int) -> bytes:
        return self._datagram_text[:characters].encode(self._encoding)

    def answer_within(self, size: int) -> bytes:
        """Return the answer to a datagram of `size` bytes.

        Without --amplify it is no longer than what the limit `amplify` lets through by default, and is cut between two
        characters.
        """
        return self.datagram_answer if self._amplify else self.beginning_within(longest_answer(size))

    def beginning_within(self, longest: int) -> bytes:
        """Return the answer, cut between two characters so that it has at most `longest` bytes."""
        if len(self.datagram_answer) <= longest:
            return self.datagram_answer
        fitting = bisect_right(self._sizes, longest)
        return self._beginning(fitting - 1) if fitting else b""


class Reply(StreamProtocol):
    """Answers each chunk that arrives. A line `exit`, whatever its case and the space around it, closes."""

    #: The beginning of a line that has not ended.
    _line = b""

    def dataReceived(self, data: bytes) -> None:
        """Answer, unless the chunk is nothing but `exit`; close if it has a line `exit`."""
        # TCP cuts anywhere: a line that ends here may have begun in an earlier chunk.
        line = self._line + data
        readings = (data, line) if b"\n" in data else (data,)
        self._line = line.rpartition(b"\n")[2][:LINE_LIMIT]
        if not any(map(_is_exit, readings)):
            self.transport.write(self.core.stream_answer)
        if any(map(_has_exit_line, readings)):
            self.close()


def _is_exit(data: bytes) -> bool:
    return data.strip().lower() == b"exit"


def _has_exit_line(data: bytes) -> bool:
    # The search is quick; to split thousands of short lines is not.
    return b"exit" in data.lower() and any(map(_is_exit, data.splitlines()))


class ReplyDatagram(AnsweringProtocol):
    """Answers each datagram. `exit` is a datagram like any other."""

    core: ReplyCore

    def answer(self, data: bytes) -> bytes:
        """Return the answer."""
        return self.core.answer_within(len(data))


service = Service(
    "reply",
    "Answer everything with a fixed text",
    options=ReplyOptions,
    core=ReplyCore,
    streams={"tcp": Reply},
    datagrams={"udp": ReplyDatagram},
    parallel=True,
)
