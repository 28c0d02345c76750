"""What a reload that fails gives back, down to the sockets."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netsvc.base.errors import StartError, UserError
from netsvc.server.instances import examine
from tests.builders.processes import free_port
from tests.builders.reloaded import ONE, RunningServer, plan, world


def failing(*listeners: str) -> Any:
    return plan({"one": {"text": "bad", "fail": "start"}}, *listeners)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_who_waits_at_a_socket_that_old_and_new_have_is_served_by_the_old() -> None:
    number = free_port()
    with world(plan(ONE, f"one tcp 127.0.0.1:{number}")) as made:
        waiting = made.connect(number)
        before = descriptors()
        assert made.errors(failing(f"one tcp proxy:trust=127.0.0.1:127.0.0.1:{number}")) == ("start fails",)
        assert made.receive(waiting) == b"one\n"
        assert made.greeting(number)[1] == b"one"
        assert descriptors() <= before + 4


def test_who_came_by_a_port_that_is_given_up_again_is_served_by_the_old() -> None:
    number = free_port()
    with world(plan(ONE, f"one tcp 0.0.0.0:{number}")) as made:
        came: list[socket.socket] = []

        def load(use: Any) -> Any:
            service: Any = made.load(use)
            core = service.core

            def connecting(options: Any, context: Any) -> Any:
                built = core(options, context)
                built.start = start
                return built

            service.core = connecting
            return service

        def start() -> None:
            came.append(made.connect(number))
            raise UserError(["no"])

        made.host.reload(failing(f"one tcp 127.0.0.1:{number}"), load).addErrback(lambda failure: None)
        assert made.receive(came[0]) == b"one\n"
        assert made.echoes(came[0])
        assert made.greeting(number)[1] == b"one"


def test_a_protocol_that_cannot_be_built_leaves_no_socket() -> None:
    number = free_port()
    with world(plan(ONE, f"one tcp 127.0.0.1:{number}")) as made:

        def load(use: Any) -> Any:
            service: Any = made.load(use)
            service.sources["tcp"] = lambda core: 1 // 0
            return service

        before = descriptors()
        then = plan({"one": {"text": "new"}}, f"one tcp proxy:trust=127.0.0.1:127.0.0.1:{number}")
        results: list[Any] = []
        made.host.reload(then, load).addErrback(results.append)
        assert "ZeroDivisionError" in str(results[0].value.errors)
        assert descriptors() == before
        assert made.greeting(number)[1] == b"one"
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert made.refused(number)


def test_a_certificate_that_is_gone_leaves_no_socket(tmp_path: Path) -> None:
    number = free_port()
    with world(plan(ONE, f"one tcp 127.0.0.1:{number}")) as made:
        before = descriptors()
        [line] = made.errors(plan(ONE, f"one tcp proxy:trust=unix:tls:{number}:interface=127.0.0.1:cert={tmp_path}/no"))
        assert line.endswith(f"{tmp_path}/no: No such file or directory")
        assert descriptors() == before
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert made.refused(number)


def test_a_file_that_the_process_names_is_told_with_its_place(tmp_path: Path) -> None:
    named = replace(plan(ONE, "one tcp 127.0.0.1:0", deny=f"@{tmp_path}/none"), origin="n.toml:2: limits.deny: ")
    with pytest.raises(StartError) as raised:
        RunningServer(named)
    assert str(raised.value).startswith("netsvc: n.toml:2: limits.deny: ")
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        assert made.errors(named)[0].startswith("n.toml:2: limits.deny: ")
        assert examine(named, made.load, made.clock) == list(made.errors(named))
