"""Builds directory trees, the files service over them in memory, and files that are not in the page cache."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger

from netsvc.interfaces import Context
from netsvc.options import parse_settings
from netsvc.services.files import root as files_root
from netsvc.services.files import service
from netsvc.services.files.core import FilesCore, FilesOptions
from netsvc.services.files.download import BLOCK, SMALL
from netsvc.services.files.file import OpenFile
from netsvc.services.files.root import Root
from netsvc.testing.wire import FakeTransport, MemoryReactor
from tests.builders.bench import Bench, build, connect


def has_openat2() -> bool:
    directory = os.open("/", os.O_RDONLY)
    try:
        return files_root.openat2_supported(directory)
    finally:
        os.close(directory)


HAS_OPENAT2 = has_openat2()


needs_openat2 = pytest.mark.skipif(not HAS_OPENAT2, reason="no openat2 here")


def open_below(directory: Path) -> list[str]:
    """List what this process has open below a directory."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        # The listing itself has a descriptor that is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [path for path in found if path.startswith(str(directory))]


def opened_while(path: Path, act: Callable[[], object]) -> bool:
    """Return whether any process opened a file during a call (inotify(7)). A look with O_PATH or stat(2) is no open."""
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert watcher >= 0
    try:
        in_open = 0x20
        assert libc.inotify_add_watch(watcher, os.fsencode(path), in_open) >= 0
        act()
        try:
            return bool(os.read(watcher, 4096))
        except BlockingIOError:
            return False
    finally:
        os.close(watcher)


#: What is no regular file, and whose opening has effects. Only root may make a device.
SPECIAL = ["fifo", "socket", "device"]


def plant_special(path: Path, kind: str) -> None:
    """Make a file of one of the `SPECIAL` kinds."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        try:
            # That of /dev/null.
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("this user may not make a device")


def plant_tree(parent: Path) -> Path:
    """Make a root with one file at each level, and secrets beside it."""
    (parent / "secret").write_bytes(b"outside")
    (parent / "public-not").mkdir()
    (parent / "public-not" / "f").write_bytes(b"outside")
    top = parent / "public"
    (top / "d" / "e").mkdir(parents=True)
    (top / "f").write_bytes(b"f")
    (top / "d" / "f").write_bytes(b"d/f")
    (top / "d" / "e" / "f").write_bytes(b"d/e/f")
    return top


def content(root: Root, name: bytes | str) -> bytes:
    descriptor = root.open(os.fsencode(name))
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def make_core(root: Path | str, reactor: Any = None, **options: object) -> tuple[FilesCore, list[LogEvent]]:
    """Build a core and return it with the list that its log goes to. `name_limit` stands for `name-limit`."""
    events: list[LogEvent] = []
    settings = {"root": str(root), **{name.replace("_", "-"): value for name, value in options.items()}}
    log = Logger("netsvc.files", observer=events.append)  # type: ignore[arg-type]
    context = Context(reactor or MemoryReactor(), log)
    parsed = parse_settings(FilesOptions, settings)
    assert isinstance(parsed, FilesOptions)
    return FilesCore(parsed, context), events


def read_all(core: FilesCore, name: bytes | str) -> bytes:
    file = core.open(os.fsencode(name))
    try:
        data = b""
        while file.left:
            data += file.read(3)
        assert file.read(3) == b""
        return data
    finally:
        file.close()


class Served:
    """A files service over a directory, and what it logged."""

    def __init__(self, root: Path, **options: object) -> None:
        self.root = root
        self.events: list[LogEvent] = []
        log = Logger("netsvc.files", observer=self.events.append)  # type: ignore[arg-type]
        written = {name.replace("_", "-"): value for name, value in options.items()}
        context = Context(MemoryReactor(), log)
        self.bench: Bench = build(service, {"root": str(root), **written}, context=context)
        self.bench.start()
        self.clock = self.bench.clock

    def connect(self, window: int = 1 << 30) -> FakeTransport:
        return connect(self.bench, "classic", window=window)[1]

    def ask(self, data: bytes, **how: int) -> FakeTransport:
        transport = self.connect(**how)
        transport.feed(data)
        return transport

    @property
    def results(self) -> list[tuple[str, int, str]]:
        return [(event["name"], event["size"], event["result"]) for event in self.events]


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def serve(directory: Path) -> Iterator[Served]:
    """Serve a few files for a test, and see that nothing is left of it."""
    (directory / "f").write_bytes(b"content")
    (directory / "empty").touch()
    (directory / "文件.txt").write_bytes("内容".encode())
    for size in (SMALL, SMALL + 1, BLOCK, BLOCK + 1, 5 * BLOCK):
        (directory / str(size)).write_bytes(pattern(size))
    one = Served(directory)
    yield one
    for transport in list(one.clock.connections):
        transport.lose()
    one.bench.stop()
    assert one.bench.core.downloads == 0
    assert one.bench.core.waiting == set()
    assert one.clock.getDelayedCalls() == []
    assert open_below(directory) == []


class ColdFile(OpenFile):
    """A file that is on the disk, and not in memory, from where it was last fetched."""

    __slots__ = ("asked", "cold")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.cold = True
        self.asked = 0

    def cached(self, count: int) -> bool:
        self.asked += 1
        return not self.cold

    def read_cached(self, buffer: bytearray) -> bytes | None:
        return None

    def fill_cached(self, buffers: Sequence[memoryview]) -> bool:
        return not self.cold and super().fill_cached(buffers)


def open_cold(core: FilesCore, name: bytes) -> ColdFile:
    """Open a file as the core does, but cold."""
    opened = FilesCore.open(core, name)
    file = ColdFile(os.dup(opened.descriptor), opened.size, core._file_moved, core._file_closed)
    core._file_moved(file)
    opened.close()
    return file


class Threads:
    """A pool whose threads run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def callInThread(self, call: Callable[..., None], *arguments: Any) -> None:
        self.jobs.append(lambda: call(*arguments))

    def callFromThread(self, call: Callable[..., None], *arguments: Any) -> None:
        call(*arguments)

    def work(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()


class ThreadedClock(Threads, Clock):
    """A clock with such a pool."""

    def __init__(self) -> None:
        Threads.__init__(self)
        Clock.__init__(self)


class ThreadedReactor(Threads, MemoryReactor):
    """A reactor with such a pool."""

    def __init__(self) -> None:
        Threads.__init__(self)
        MemoryReactor.__init__(self)
