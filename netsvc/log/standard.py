"""The standard streams of a serving process: a reader that does not read them must not stop it.

Everything that is written to `sys.stdout` and `sys.stderr` is queued for a thread: by the log, by Twisted, by
services and by the interpreter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import BufferedWriter, RawIOBase, TextIOWrapper
from typing import Any

from netsvc.log.output import complain_on_stderr
from netsvc.log.queued import QueuedOutput, may_block, wait

#: The outputs of stdout and stderr, by descriptor. Descriptors belong to the process, as this does.
_outputs: dict[int, QueuedOutput] = {}


class _Raw(RawIOBase):
    """The unbuffered file below a standard stream: queues what is written."""

    def __init__(self, output: QueuedOutput, descriptor: int, name: str) -> None:
        super().__init__()
        self.name = name
        self._output = output
        self._descriptor = descriptor

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Queue bytes, and return their number."""
        taken = bytes(data)
        self._output.put(taken)
        return len(taken)

    def fileno(self) -> int:
        """Return the descriptor of the stream."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return os.isatty(self._descriptor)


def take_over() -> None:
    """Queue what this process writes to stdout and stderr from now on, where writing may block.

    Writes wait for the thread, with little patience, until the reactor runs: see `netsvc.log.queued.follow`.
    """
    wait(True)
    are_same = _are_same()
    for descriptor, stream in ((1, sys.__stdout__), (2, sys.__stderr__)):
        if descriptor not in _outputs and isinstance(stream, TextIOWrapper) and may_block(descriptor):
            output = _outputs.get(1) if descriptor == 2 and are_same else None
            if output is None:
                name = "stdout" if descriptor == 1 else "stderr"
                complain = _say_nothing if descriptor == 2 or are_same else complain_on_stderr
                output = QueuedOutput(descriptor, name, _plain, complain=complain)
            _outputs[descriptor] = output
            _redirect(stream, output, descriptor)


def _plain(text: str) -> str:
    return f"netsvc: {text}\n"


def _say_nothing(_text: str) -> None:
    """Do nothing: stderr has no room for a complaint about itself."""


def _are_same() -> bool:
    """Return whether stdout and stderr are the same file: one thread writes it then, and keeps the order."""
    try:
        return os.path.sameopenfile(1, 2)
    except OSError:
        return False


def _redirect(stream: TextIOWrapper, output: QueuedOutput, descriptor: int) -> None:
    """Put another raw file below a stream: Twisted and other libraries already refer to the stream itself."""
    encoding, errors, name = stream.encoding, stream.errors, stream.name
    settings = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    stream.detach()
    below = BufferedWriter(_Raw(output, descriptor, name))
    stream.__init__(below, encoding, errors, "\n", **settings)  # type: ignore[misc]


def queued(descriptor: int, notice: Callable[[str], str]) -> QueuedOutput | None:
    """Return the output of a standard stream that was taken over; `notice` makes its lines about lost ones."""
    output = _outputs.get(descriptor)
    if output is not None:
        output.notice = notice
    return output
