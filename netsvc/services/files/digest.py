"""SHA-256 digests of files: computed in threads, and remembered by what identifies a content (RFC 9530)."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from netsvc.services.files.conditions import TICK
from netsvc.services.files.file import FileBusyError, OpenFile
from netsvc.services.files.small import identity

#: Files that are read at once. The reactor's pool has ten threads, and others need it.
THREADS = 2
#: Files that are read or wait for it, and of these the ones that one client has asked for.
MOST_FILES, MOST_OF_A_CLIENT = 64, 4
#: Digests that are remembered.
MOST_KNOWN = 4096
#: Bytes of a file that are read before it is the turn of the next one, and bytes of one read.
TURN, PIECE = 64 * 1024 * 1024, 256 * 1024

_MEMBER = re.compile(rb"[ \t]*+([a-z*][a-z0-9_.*-]*+)=([0-9]{1,2})[ \t]*+")
#: Bytes of the header's value; a longer one is ignored.
_LONGEST = 1024


def wants_sha256(values: Sequence[bytes]) -> bool | None:
    """Return whether a client wants the SHA-256, by the values of Want-Repr-Digest (RFC 9530, section 4).

    None if it does not say so, or what it says is malformed (RFC 8941, section 4.2).
    """
    wanted = None
    value = b",".join(values)
    if not value or len(value) > _LONGEST:
        return None
    for member in value.split(b","):
        found = _MEMBER.fullmatch(member)
        if found is None or int(found[2]) > 10:
            return None
        if found[1] == b"sha-256":
            wanted = int(found[2]) > 0
    return wanted


def digest_line(digest: bytes) -> bytes:
    """Return the header Repr-Digest of a SHA-256 (RFC 9530, section 3)."""
    return b"Repr-Digest: sha-256=:%b:\r\n" % base64.b64encode(digest)


def checksum_line(digest: bytes, name: bytes) -> bytes:
    """Return the line of a file for `sha256sum --check`."""
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return b"%b%b  %b\n" % (b"\\" if escaped != name else b"", digest.hex().encode("ascii"), escaped)


class _Reading:
    """A file that is read, by a descriptor of its own, and who waits for the digest."""

    def __init__(self, descriptor: int, key: tuple[int, ...]) -> None:
        self.descriptor = descriptor
        self.key = key
        self.hash = hashlib.sha256()
        self.offset = 0
        self.is_at_end = False
        self.failed = False
        #: Whether a thread has it.
        self.in_thread = False
        #: Each with its client.
        self.waiting: dict[Callable[[bytes | None], None], str | None] = {}
        #: Paths of the file, if the digest may be remembered for them.
        self.is_kept = True
        self.timer: Any = None


class Digests:
    """Computes digests, `THREADS` at once and `MOST_FILES` in turn, and remembers `MOST_KNOWN`.

    A digest is that of one content: reading begins when no change can go unnoticed any more, `TICK` after the last one,
    and afterwards the file must be what it was when the digest was asked for.
    """

    def __init__(self, reactor: Any, now: Callable[[], int] = time.time_ns) -> None:
        self._reactor = reactor
        self._now = now
        self._known: dict[tuple[int, ...], bytes] = {}
        self._readings: dict[tuple[int, ...], _Reading] = {}
        self._ready: deque[_Reading] = deque()
        self._asked: dict[str, int] = {}
        self._busy = 0

    @property
    def any_known(self) -> bool:
        """Whether a digest is remembered."""
        return bool(self._known)

    def known(self, file: OpenFile) -> bytes | None:
        """Return the digest of an open file, if it is remembered."""
        key = identity(os.fstat(file.descriptor))
        digest = self._known.pop(key, None)
        if digest is not None:
            # Reinserted, to be the last one that is forgotten.
            self._known[key] = digest
        return digest

    def ask(self, file: OpenFile, client: str | None, answer: Callable[[bytes | None], None]) -> Callable[[], None]:
        """Call `answer` with the digest later, or with None if the file changes or cannot be read.

        Returns a function that withdraws this; a file that nobody waits for is not read any further. The file may be
        closed meanwhile. Raises `FileBusyError` if there are too many, of a client or at all.
        """
        if client is not None and self._asked.get(client, 0) >= MOST_OF_A_CLIENT:
            raise FileBusyError("too many digests of this client")
        status = os.fstat(file.descriptor)
        key = identity(status)
        reading = self._readings.get(key)
        if reading is None:
            if len(self._readings) >= MOST_FILES:
                raise FileBusyError("too many digests")
            try:
                reading = self._readings[key] = _Reading(os.dup(file.descriptor), key)
            except OSError as error:
                raise FileBusyError(f"cannot be read ({error.strerror})") from error
            # A copy of a file without a size of its own is another one each time.
            reading.is_kept = status.st_mtime_ns == file.modified
            # Not by the time of the content, which anybody can set.
            age = self._now() - status.st_ctime_ns
            wait = min(TICK, max(0, TICK - age)) / 1e9
            reading.timer = self._reactor.callLater(wait, self._settled, reading)
        reading.waiting[answer] = client
        if client is not None:
            self._asked[client] = self._asked.get(client, 0) + 1
        return lambda: self._withdraw(reading, answer)

    def close(self) -> None:
        """Forget all who wait."""
        for reading in list(self._readings.values()):
            for answer in list(reading.waiting):
                self._withdraw(reading, answer)

    def _withdraw(self, reading: _Reading, answer: Callable[[bytes | None], None]) -> None:
        if answer not in reading.waiting:
            return
        self._left(reading.waiting.pop(answer))
        if not reading.waiting:
            self._readings.pop(reading.key, None)
            if not reading.in_thread:
                self._finish(reading)

    def _left(self, client: str | None) -> None:
        if client is not None:
            self._asked[client] -= 1
            if not self._asked[client]:
                del self._asked[client]

    def _finish(self, reading: _Reading) -> None:
        """Release what a reading has; no thread has it."""
        if reading.timer is not None:
            reading.timer.cancel()
            reading.timer = None
        if reading in self._ready:
            self._ready.remove(reading)
        os.close(reading.descriptor)

    def _settled(self, reading: _Reading) -> None:
        reading.timer = None
        self._ready.append(reading)
        self._begin()

    def _begin(self) -> None:
        while self._ready and self._busy < THREADS:
            reading = self._ready.popleft()
            reading.in_thread = True
            self._busy += 1
            if hasattr(self._reactor, "callInThread"):
                self._reactor.callInThread(self._read, reading)
            else:
                reading.timer = self._reactor.callLater(0, self._read_here, reading)

    def _read(self, reading: _Reading) -> None:
        _read_on(reading)
        self._reactor.callFromThread(self._has_read, reading)

    def _read_here(self, reading: _Reading) -> None:
        reading.timer = None
        _read_on(reading)
        self._has_read(reading)

    def _has_read(self, reading: _Reading) -> None:
        self._busy -= 1
        reading.in_thread = False
        if not reading.waiting:
            self._finish(reading)
        elif not (reading.is_at_end or reading.failed):
            self._ready.append(reading)
        else:
            self._end(reading)
        self._begin()

    def _end(self, reading: _Reading) -> None:
        digest = None
        if not reading.failed and identity(os.fstat(reading.descriptor)) == reading.key:
            digest = reading.hash.digest()
            if reading.is_kept:
                self._known[reading.key] = digest
                if len(self._known) > MOST_KNOWN:
                    del self._known[next(iter(self._known))]
        del self._readings[reading.key]
        waiting, reading.waiting = reading.waiting, {}
        self._finish(reading)
        for answer, client in waiting.items():
            self._left(client)
            answer(digest)


def _read_on(reading: _Reading) -> None:
    """Read a turn of a file, as long as somebody waits for it."""
    stop = reading.offset + TURN
    try:
        while reading.waiting and reading.offset < stop:
            data = os.pread(reading.descriptor, PIECE, reading.offset)
            if not data:
                reading.is_at_end = True
                return
            reading.hash.update(data)
            reading.offset += len(data)
    except OSError:
        reading.failed = True
