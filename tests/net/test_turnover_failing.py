"""Several workers change their plan: keys that come along, and what is left when something goes wrong."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from netsvc.interfaces import INetworkService
from netsvc.plan.plan import ServiceUse
from netsvc.workers.workers import MOST_LEAVING
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.pems import Pem
from tests.builders.processes import free_port
from tests.builders.turnover import ReloadedWorkers, plan


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def test_keys_that_can_be_read_no_more_are_those_that_were_read_at_the_start(tmp_path: Path) -> None:
    from tests.builders.certificates import write_certificate

    key, certificate = write_certificate(tmp_path, "localhost")
    address = f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    world = ReloadedWorkers(plan(address))
    before = world.processes[0].key_files
    key.unlink()
    [first, _] = world.reload(plan(address))
    assert first.key_files == before
    assert "PRIVATE KEY" in before[0]["privateKey"]
    world.end()


def test_where_a_line_of_a_file_is_wrong_it_is_named() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        new = plan(f"127.0.0.1:{taken.getsockname()[1]}")
        world.begin(replace(new, listeners=(replace(new.listeners[0], origin="n.toml:3: "),)))
    assert states(world.errors()[0], "n.toml:3: ", "one tcp", "127.0.0.1:")
    world.end()


def test_what_is_in_the_way_of_a_port_beside_an_old_one_is_explained() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        number = taken.getsockname()[1]
        world = ReloadedWorkers(plan(f"127.0.0.1:{number}"))
        before = len(os.listdir("/proc/self/fd"))
        world.begin(plan(f"0.0.0.0:{number}"))
        assert states(world.errors()[0], "one tcp", f"0.0.0.0:{number}", f"port {number}")
        assert len(os.listdir("/proc/self/fd")) == before
        world.end()


def test_a_certificate_that_is_gone_leaves_no_socket_beside_an_old_one(tmp_path: Path) -> None:
    number = free_port()
    world = ReloadedWorkers(plan(f"127.0.0.1:{number}"))
    before = len(os.listdir("/proc/self/fd"))
    world.begin(plan(f"tls:{number}:cert={tmp_path}/none"))
    assert world.errors()[0].endswith(f"{tmp_path}/none: No such file or directory")
    assert len(os.listdir("/proc/self/fd")) == before
    world.end()


def test_other_certificates_go_to_new_workers_with_the_same_sockets(tmp_path: Path) -> None:
    one, two = Pem("a.example").write(tmp_path, "one"), Pem("b.example").write(tmp_path, "two")
    tls = "tls:0:cert={}:key={}:interface=127.0.0.1"
    world = ReloadedWorkers(plan(tls.format(*one)))
    port = world.port()
    [first, _] = world.reload(plan(tls.format(*two)))
    assert [states(line, "1 ", " kept", "changed: ", "TLS", "one tcp") for line in world.results] == [True]
    assert world.port() == port
    assert sorted(first.key_files[0]) == sorted(map(str, two))
    # The same, of which one can be read no more.
    two[1].unlink()
    [first, _] = world.reload(plan(tls.format(*two)))
    assert sorted(first.key_files[0]) == sorted(map(str, two))
    world.end()


def test_a_certificate_that_has_expired_is_warned_of_once_at_each_reload(tmp_path: Path, lines: Lines) -> None:
    cert, key = Pem("a.example", days=(-30, -1)).write(tmp_path)
    same = plan(f"tls:0:cert={cert}:key={key}:interface=127.0.0.1")
    world = ReloadedWorkers(same)
    for count in (1, 2, 3):
        assert len([line for line in lines if "the certificate expired on" in line]) == count
        world.reload(same)
    # The keys of the start are used where they cannot be read any more, and that is no mistake.
    key.unlink()
    world.reload(same)
    assert [states(line, "1 ", " kept") and "changed" not in line for line in world.results] == [True]
    world.end()


def test_what_an_author_did_not_expect_changes_nothing() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))

    def load(use: ServiceUse) -> INetworkService:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        world.workers.reload(plan("127.0.0.1:0"), load)
    world.reload(plan("127.0.0.1:0", text="two"))
    assert [states(line, "1 ", " kept", "changed: ", " one") for line in world.results] == [True]
    world.end()


def test_old_workers_that_do_not_end_keep_a_reload_from_making_more() -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0"))
    for number in range(MOST_LEAVING // 2):
        world.reload(plan("127.0.0.1:0", text=str(number)))
    world.begin(plan("127.0.0.1:0"))
    [line] = world.errors()
    assert line.startswith(f"{MOST_LEAVING} workers ")
    world.processes[0].end()
    assert len(world.reload(plan("127.0.0.1:0"))) == 2
    world.end()


def test_sockets_that_the_system_refuses_at_the_last_moment_leave_the_old_workers(tmp_path: Path) -> None:
    world = ReloadedWorkers(plan("127.0.0.1:0", f"unix:{tmp_path}/sock"))
    held = world.workers.generation.groups[0]
    resize, asked = held.resize, []

    def refused(workers: int) -> None:
        asked.append(workers)
        if len(asked) == 1:
            raise OSError(errno.ENOBUFS, "no buffer space")
        resize(workers)

    held.resize = refused  # type: ignore[method-assign]
    started = world.reload(plan("127.0.0.1:0", workers=3))
    assert world.results[0].check(OSError)
    assert asked == [3, 2]
    assert [process.is_told_to_stop for process in world.processes] == [False, False, True, True, True]
    assert (tmp_path / "sock").exists()
    for process in started:
        process.end()
    world.reload(plan("127.0.0.1:0", text="two"))
    assert [states(line, "1 ", " kept", "1 closed", "changed: ", " one") for line in world.results] == [True]
    world.end()
