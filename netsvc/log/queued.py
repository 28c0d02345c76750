"""Where the log is written if writes may block, as to a pipe or a terminal: a thread writes what was queued.

O_NONBLOCK would not do: an inherited descriptor shares it with the other processes that have it.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from netsvc.log.output import Output, complain_on_stderr

#: Bytes that wait for a reader, at most; then lines are lost until it has read all of them. About 8,000 lines.
MOST_QUEUED = 1 << 20
#: Seconds for which the start and the end of a process wait for a reader, each.
PATIENCE = 1.0
#: Bytes that the thread writes at once, at most, unless a single write was longer.
_AT_ONCE = 1 << 16
#: What an entry of the queue takes besides its bytes.
_ENTRY = 64

_NOT_READ = "its reader does not read"


def may_block(descriptor: int) -> bool:
    """Return whether writes to a descriptor may wait for a reader: to a pipe, a socket, a terminal."""
    try:
        kind = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(descriptor)


class QueuedOutput(Output):
    """Writes to a descriptor from a thread of its own: a reader that does not read stops nothing. Never raises.

    At most `most` bytes are queued. What comes then is dropped and counted in `lost`, until the reader has read
    everything that was queued; a line says how many lines were lost there.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        notice: Callable[[str], str],
        *,
        encoding: str = "utf-8",
        complain: Callable[[str], None] = complain_on_stderr,
        most: int = MOST_QUEUED,
    ) -> None:
        super().__init__(descriptor, name, notice, encoding=encoding, complain=complain)
        self._most = most
        self._waits = _process.waits
        #: The seconds that may be waited in all.
        self._patience = PATIENCE
        #: The lines that found no room in the queue, and how many of them no line has reported yet.
        self._dropped = 0
        self._unreported_drops = 0
        self._reset()
        _process.outputs.add(self)

    def _reset(self) -> None:
        # Reentrant: a signal handler may log in the middle of `put`.
        self._queue_lock = threading.RLock()
        #: Bytes; an event, set when all before it was written; None, which ends the thread.
        self._queue: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._queued = 0
        self._thread: threading.Thread | None = None

    def forked(self) -> None:
        """Begin again in a forked process, which has no thread: what is queued is written by the other one."""
        self._lock = threading.RLock()
        self._reset()

    @property
    def lost(self) -> int:
        """The number of lost lines."""
        return self._lost + self._dropped

    def wait(self, waits: bool) -> None:
        """Let `put` wait until the thread has written, for `PATIENCE` seconds in all, or return at once."""
        self._waits = waits
        self._patience = PATIENCE
        if waits:
            self.settle()

    def put(self, data: bytes) -> None:
        """Queue bytes: lines, and possibly a part of a line at the end."""
        size = len(data) + _ENTRY
        with self._queue_lock:
            has_room = not self._unreported_drops and (not self._queued or self._queued + size <= self._most)
            if has_room:
                self._queued += size
                self._queue.put(data)
            else:
                count = data.count(b"\n") or 1
                self._dropped += count
                self._unreported_drops += count
            if self._thread is None:
                self._start()
        if not has_room:
            self._report_once(_NOT_READ)
        elif self._waits:
            self.settle()

    def settle(self) -> None:
        """Wait until everything that is queued was written, or patience is exhausted."""
        thread = self._thread
        if thread is None or self._patience <= 0 or thread is threading.current_thread():
            return
        written = threading.Event()
        self._queue.put(written)
        began = time.monotonic()
        if written.wait(self._patience):
            self._patience -= time.monotonic() - began
        else:
            self._patience = 0.0
            self._report_once(_NOT_READ)

    def close(self) -> None:
        """Close the descriptor when everything that is queued was written."""
        with self._queue_lock:
            if self._thread is None:
                os.close(self._descriptor)
            else:
                self._queue.put(None)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"writes {self.name}", daemon=True)
        # Signals are for the main thread: the interpreter runs their handlers there.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _run(self) -> None:
        queue = self._queue
        while True:
            entry = queue.get()
            chunks: list[bytes] = []
            size = 0
            while isinstance(entry, bytes):
                chunks.append(entry)
                size += len(entry)
                if size >= _AT_ONCE:
                    break
                try:
                    entry = queue.get_nowait()
                except Empty:
                    break
            if chunks:
                super().put(b"".join(chunks))
                self._written(size + _ENTRY * len(chunks))
            if entry is None:
                super().close()
                return
            if isinstance(entry, threading.Event):
                super().settle()
                entry.set()

    def _written(self, size: int) -> None:
        """Make room in the queue, and report the lines that were lost when it was full."""
        count = 0
        with self._queue_lock:
            self._queued -= size
            if not self._queued:
                count, self._unreported_drops = self._unreported_drops, 0
        if count:
            super().put(self._notice_of(count, _NOT_READ))


class _Process:
    """The outputs of this process, and whether they wait for their threads."""

    def __init__(self) -> None:
        self.waits = False
        self.outputs: weakref.WeakSet[QueuedOutput] = weakref.WeakSet()

    def forked(self) -> None:
        for output in self.outputs:
            output.forked()


_process = _Process()
os.register_at_fork(after_in_child=_process.forked)


def wait(waits: bool) -> None:
    """Let every output wait for its thread, or not: a process that may end at any time waits."""
    _process.waits = waits
    for output in list(_process.outputs):
        output.wait(waits)


def follow(reactor: Any) -> None:
    """Let outputs wait for their threads before the reactor runs and after it, but not meanwhile."""
    reactor.callWhenRunning(wait, False)
    reactor.addSystemEventTrigger("after", "shutdown", wait, True)
