"""What the files service sends and what it refuses, and its drain."""

from __future__ import annotations

import os
import resource
import socket
import sys
from functools import partial
from itertools import product
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import formatEvent

from netsvc.services.files import core as core_module
from netsvc.services.files import service
from netsvc.services.files.core import ON_ITS_WAY, FilesCore
from netsvc.services.files.file import CutError, FileBusyError, FileRefusedError, OpenFile
from netsvc.testing import check_service
from netsvc.testing.wire import MemoryReactor
from tests.builders.files import make_core, open_below, read_all


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "public"
    (top / "d" / ".git").mkdir(parents=True)
    (top / "f").write_bytes(b"content")
    (top / "empty").touch()
    (top / ".secret").write_bytes(b"s")
    (top / "d" / ".git" / "config").write_bytes(b"c")
    (top / "d" / "f").write_bytes(b"d/f")
    (top / "文件.txt").write_bytes("内容".encode())
    return top


def started(root: Path, **options: object) -> FilesCore:
    core, _ = make_core(root, **options)
    core.start()
    return core


def refusal(core: FilesCore, name: bytes | str) -> str:
    with pytest.raises(FileRefusedError) as caught:
        core.open(os.fsencode(name))
    return str(caught.value)


@pytest.mark.slow
def test_the_service_keeps_the_contract(root: Path) -> None:
    samples = {"classic": [b"f\n", b"missing\r\n", "文件.txt".encode("gbk"), b"f\nand more", b"/etc/passwd\n"]}
    check_service(service, {"root": str(root)}, samples=samples)


def test_a_core_that_was_stopped_can_start_again(root: Path) -> None:
    core = started(root)
    assert core.drain() is None
    core.stop()
    assert refusal(core, "f") == "draining"
    core.start()
    assert read_all(core, "f") == b"content"
    core.stop()


def test_regular_files_are_sent_and_everything_else_is_refused(root: Path) -> None:
    os.mkfifo(root / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    # Relative to the directory: the path of a socket may have 107 bytes.
    here = os.getcwd()
    os.chdir(root)
    listener.bind("socket")
    os.chdir(here)
    core = started(root)
    assert read_all(core, "f") == b"content"
    assert read_all(core, "empty") == b""
    assert read_all(core, "d/../文件.txt") == "内容".encode()
    for name in ("d", ".", "d/", "fifo", "socket"):
        assert refusal(core, name) == "not a regular file"
    listener.close()
    core.stop()
    assert open_below(root) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "no such file"),
        ("f/f", "no such file"),
        ("", "not a file name"),
        ("f\0", "not a file name"),
        ("/f", "outside the root"),
        ("/etc/passwd", "outside the root"),
        ("../public/f", "outside the root"),
        ("x" * 300, "name too long"),
        ("x/" * 2050, "name too long"),
        ("loop", "too many links"),
        (".secret", "hidden"),
        ("./.secret", "hidden"),
        ("d/.git/config", "hidden"),
        (".missing", "hidden"),
        ("d/.git/../f", "hidden"),
        ("...", "hidden"),
    ],
)
def test_what_is_not_sent_is_refused_with_the_reason(root: Path, name: str, reason: str) -> None:
    (root / "loop").symlink_to("loop")
    core = started(root)
    assert refusal(core, name) == reason
    core.stop()


def test_hidden_files_are_sent_when_they_may_be(root: Path) -> None:
    core = started(root, hidden=True)
    assert read_all(core, ".secret") == b"s"
    assert read_all(core, "d/.git/config") == b"c"
    assert refusal(core, "...") == "no such file"
    core.stop()


def test_a_file_that_may_not_be_read_is_refused(root: Path) -> None:
    (root / "f").chmod(0)
    root.parent.chmod(0o755)
    core = started(root)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        assert refusal(core, "f") == "permission denied"
    finally:
        os.seteuid(mine)
    core.stop()


def test_an_error_without_a_name_of_ours_is_refused_with_the_systems_words(root: Path) -> None:
    core = started(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No new descriptor may have a number over the limit: there is none left.
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        assert refusal(core, "f") == "cannot be opened (Too many open files)"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read_all(core, "f") == b"content"
    core.stop()


def found(core: FilesCore, name: bytes) -> tuple[bytes, bytes]:
    """Return the path and the content of what a name means."""
    file, path = core.find(name)
    try:
        return path, file.read(file.size)
    finally:
        file.close()


@pytest.mark.parametrize(
    "sent",
    [
        "文件.txt".encode(),
        "文件.txt".encode("gbk"),
        "\ufeff文件.txt".encode("utf-16-le"),
        "文件.txt".encode("utf-16-le"),
        "/文件.txt".encode("gbk"),
        '"文件.txt" '.encode(),
        "文件.txt".encode() + bytes(1000),
    ],
)
def test_a_name_is_found_in_every_encoding_and_spelling(root: Path, sent: bytes) -> None:
    core = started(root)
    assert found(core, sent) == ("文件.txt".encode(), "内容".encode())
    core.stop()


@pytest.mark.parametrize("name", ["学习", "学", "一"])
def test_gbk_that_is_valid_utf_8_as_well_means_the_file_that_is_there(root: Path, name: str) -> None:
    sent = f"{name}.txt".encode("gbk")
    sent.decode("utf-8")
    core = started(root)
    (root / f"{name}.txt").write_bytes(b"utf-8")
    assert found(core, sent) == (f"{name}.txt".encode(), b"utf-8")
    (root / os.fsdecode(sent)).write_bytes(b"as it was sent")
    assert found(core, sent) == (sent, b"as it was sent")
    core.stop()


@pytest.mark.parametrize(("encoding", "name"), [("gbk", "文件2.txt"), ("latin-1", "\xe9t\xe9.txt")])
def test_a_name_on_the_disk_in_a_legacy_encoding_is_found_by_its_bytes(root: Path, encoding: str, name: str) -> None:
    core = started(root)
    stored = name.encode(encoding)
    (root / os.fsdecode(stored)).write_bytes(b"old")
    assert found(core, stored) == (stored, b"old")
    if encoding == "gbk":
        assert found(core, name.encode()) == (stored, b"old")
    core.stop()


def test_composed_and_decomposed_names_find_each_other_in_every_part(root: Path) -> None:
    core = started(root)
    forms = {form: normalize(form, "\xe9t\xe9") for form in ("NFC", "NFD")}
    for directory, file in ((forms["NFC"], forms["NFD"]), (forms["NFD"], forms["NFC"])):
        (root / directory).mkdir()
        (root / directory / file).write_bytes(b"summer")
        for asked in product(forms.values(), repeat=2):
            assert found(core, "/".join(asked).encode()) == (f"{directory}/{file}".encode(), b"summer")
        (root / directory / file).unlink()
        (root / directory).rmdir()
    core.stop()


@pytest.mark.parametrize(
    "sent", [b"\\u002fetc/passwd\xff", b"..\\secret", b'"../secret"', b"/../secret", b"\\..\\secret"]
)
def test_no_reading_of_a_name_leaves_the_root_or_shows_what_is_hidden(root: Path, sent: bytes) -> None:
    (root.parent / "secret").write_bytes(b"outside")
    (root / ".hidden").write_bytes(b"hidden")
    core = started(root, encoding="raw_unicode_escape")
    for name in (sent, b"d\\.hidden", b'".hidden"', b" .hidden", b"/.hidden", b"\\.hidden"):
        with pytest.raises(FileRefusedError):
            core.find(name)
    core.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has such files")
def test_a_file_of_proc_or_sys_is_read_to_its_end_whatever_its_size_says() -> None:
    for directory, name in (("/proc", "version"), ("/sys/kernel", "notes"), ("/sys/kernel", "uevent_seqnum")):
        path = Path(directory, name)
        if path.exists():
            core = started(Path(directory))
            assert read_all(core, name) == path.read_bytes()
            core.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has such files")
def test_a_file_without_a_size_and_without_an_end_is_refused_as_not_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "_PSEUDO_LIMIT", 10)
    core = started(Path("/proc"))
    with pytest.raises(FileBusyError):
        core.open(b"version")
    assert core.downloads == 0
    assert open_below(Path("/proc/version")) == []
    core.stop()


def test_the_download_that_stalled_longest_gives_way_once_all_places_are_taken(root: Path) -> None:
    reactor = MemoryReactor()
    core, _ = make_core(root, reactor, downloads=3, stall="30")
    core.start()
    gone: list[str] = []
    first, second, third = (core.open(b"f") for _ in range(3))
    for name, file in (("first", first), ("second", second), ("third", third)):
        file.evict = partial(gone.append, name)
    reactor.advance(20)
    first.read(1)
    reactor.advance(9.9)
    assert refusal(core, "f") == "too many downloads"
    reactor.advance(0.1)
    assert refusal(core, "missing") == "no such file"
    assert gone == []
    more = [core.open(b"f"), core.open(b"f")]
    assert gone == ["second", "third"]
    assert refusal(core, "f") == "too many downloads"
    assert (second.descriptor, third.descriptor, core.downloads) == (-1, -1, 3)
    for file in (first, *more):
        file.close()
    core.stop()
    assert open_below(root) == []


def test_downloads_are_limited(root: Path) -> None:
    core = started(root, downloads=2)
    first, second = core.open(b"f"), core.open(b"f")
    assert refusal(core, "f") == "too many downloads"
    first.close()
    first.close()
    third = core.open(b"f")
    assert refusal(core, "f") == "too many downloads"
    second.close()
    third.close()
    assert core.downloads == 0
    assert open_below(root) == [str(root)]
    core.stop()


def test_a_drain_ends_what_waits_refuses_what_comes_and_lasts_until_the_last_file_is_closed(root: Path) -> None:
    core = started(root)
    ended: list[str] = []
    core.waiting.add(lambda: ended.append("end"))
    files = [core.open(b"f"), core.open(b"f")]
    done, again = core.drain(), core.drain()
    assert isinstance(done, Deferred)
    assert done is again
    # What is on its way when it begins is still answered.
    assert ended == []
    core.open(b"f").close()
    core.context.reactor.advance(ON_ITS_WAY)
    assert ended == ["end"]
    assert refusal(core, "f") == "draining"
    files[0].close()
    assert not done.called
    files[1].close()
    assert done.called
    core.stop()


def test_a_drain_without_an_open_file_is_over_when_nobody_waits_any_more(root: Path) -> None:
    core = started(root)
    core.waiting.add(core.waiting.clear)
    done = core.drain()
    assert done is not None and not done.called
    core.context.reactor.advance(ON_ITS_WAY)
    assert done.called
    core.stop()


def test_who_stops_does_not_wait_for_what_is_on_its_way(root: Path) -> None:
    core = started(root)
    core.waiting.add(core.waiting.clear)
    core.drain()
    core.stop()
    assert not core.context.reactor.getDelayedCalls()


def test_a_drain_with_no_file_open_is_over_at_once(root: Path) -> None:
    core = started(root)
    assert core.drain() is None
    core.stop()


def test_a_file_that_grows_is_read_to_its_old_size(root: Path) -> None:
    core = started(root)
    file = core.open(b"f")
    with (root / "f").open("ab") as more:
        more.write(b" and more")
    assert file.read(100) == b"content"
    assert file.left == 0
    file.close()
    core.stop()


def test_a_file_that_shrinks_is_cut_and_never_at_its_end(root: Path) -> None:
    core = started(root)
    file = core.open(b"f")
    assert file.read(2) == b"co"
    os.truncate(root / "f", 4)
    assert file.read(100) == b"nt"
    with pytest.raises(CutError, match="file shrank"):
        file.read(100)
    assert file.offset == 4
    file.close()
    core.stop()


def test_a_file_that_the_disk_does_not_give_is_cut(root: Path) -> None:
    directory = os.open(root, os.O_RDONLY)
    file = OpenFile(directory, 10, lambda file: None, lambda file: None)
    with pytest.raises(CutError, match=r"read error \(Is a directory\)"):
        file.read(10)
    file.close()


def test_an_access_line_shows_a_name_that_no_terminal_obeys_and_no_format_reads(root: Path) -> None:
    reactor = MemoryReactor()
    core, events = make_core(root, reactor)
    reactor.advance(1.5)
    core.record("192.0.2.1:4000", '{peer}"\x1b\n文'.encode() + b"\xff", 7, 0.25, "sent")
    (event,) = events
    shown = '{peer}\\"\\x1b\\n文\\xff'
    assert formatEvent(event) == f'192.0.2.1:4000 "{shown}" 7 bytes in 1.250 s: sent'
    assert (event["peer"], event["name"], event["size"]) == ("192.0.2.1:4000", shown, 7)
    assert (event["seconds"], event["result"]) == (1.25, "sent")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_any_bytes_open_a_file_of_the_root_or_are_refused(root: Path, name: bytes) -> None:
    core = started(root)
    try:
        found(core, name)
    except FileRefusedError:
        pass
    finally:
        core.stop()
    assert open_below(root) == []
