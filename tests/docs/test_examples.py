"""The examples are whole, keep the contract, and work when they are installed."""

from __future__ import annotations

import asyncio
import os
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from twisted.internet.task import Clock

from netsvc.config.adhoc import adhoc_service
from netsvc.plan.plan import Plan, ServiceUse
from netsvc.server.instances import service_notes
from netsvc.testing import Served, check_service, connect, serve
from tests.builders.installation import Installation, install
from tests.builders.processes import PATIENCE, ROOT, TWISTD, Server, datagrams, read_all, read_exactly, run
from tests.builders.processes import connect as connect_to

SHOUT = ROOT / "examples" / "shout"
CLASSIC = ROOT / "examples" / "classic"
KEYVALUE = ROOT / "examples" / "keyvalue"
NAMES = ("daytime", "qotd")


class TestShout:
    @pytest.fixture
    def target(self) -> Iterator[str]:
        sys.path.insert(0, str(SHOUT))
        yield "shout:service"
        sys.path.remove(str(SHOUT))
        sys.modules.pop("shout", None)

    def test_has_at_most_15_lines(self) -> None:
        lines = (SHOUT / "shout.py").read_text().splitlines()
        assert len([line for line in lines if line.strip()]) <= 15
        assert max(map(len, lines)) <= 120

    def test_takes_one_line_of_metadata(self) -> None:
        metadata = ConfigParser()
        metadata.read(SHOUT / "setup.cfg")
        assert dict(metadata["options.entry_points"]) == {"netsvc.services": "shout = shout:service"}

    @pytest.mark.slow
    def test_keeps_the_contract_and_has_good_habits(self, target: str) -> None:
        check_service(target, samples={"tcp": [b"hello\n"], "udp": [b"hello"]})

    def test_shouts(self, target: str) -> None:
        client = connect(target)
        client.send(b"hello, \xe4\xb8\x96!")
        client.expect(b"HELLO, \xe4\xb8\x96!")


class TestKeyValue:
    TARGET = f"{KEYVALUE / 'keyvalue.py'}:service"

    def test_has_fewer_than_40_lines(self) -> None:
        lines = (KEYVALUE / "keyvalue.py").read_text().splitlines()
        assert len([line for line in lines if line.strip()]) < 40

    def test_sets_and_gets_over_both_protocols(self) -> None:
        served = serve(adhoc_service(self.TARGET), keys=2)
        client = served.connect()
        client.send(b"SET a 1 2\r\nSET b 3\nSET c 4\nGET a\nGET c\nSET b 5\nno\n")
        assert client.received.splitlines() == [b"OK", b"OK", b"FULL", b"1 2", b"NONE", b"OK", b"WHAT"]
        datagram = served.connect_datagram()
        datagram.send(b"GET b")
        datagram.expect(b"5")

    def test_a_reload_loses_no_value(self) -> None:
        plan = Plan({"keyvalue": ServiceUse(self.TARGET, adhoc=True)}, ())
        assert service_notes(plan, lambda use: adhoc_service(self.TARGET), Clock()) == []
        served = serve(adhoc_service(self.TARGET), keys=1)
        client = served.connect()
        client.send(b"SET a 1\nSET b 2\n")
        assert served.core.reconfigure({"keys": 2})
        client.send(b"SET b 2\nGET a\n")
        assert client.received.splitlines() == [b"OK", b"FULL", b"OK", b"1"]

    @pytest.mark.slow
    def test_keeps_the_contract_and_has_good_habits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(KEYVALUE)
        samples = {"tcp": [b"SET a 1\nGET a\n"], "udp": [b"GET a"]}
        check_service("keyvalue:service", samples=samples)

    def test_its_configuration_is_right(self) -> None:
        checked = run(sys.executable, "-m", "netsvc", "check", "--config", str(KEYVALUE / "netsvc.toml"))
        assert (checked.returncode, checked.stderr) == (0, "")
        assert "keyvalue" in checked.stdout and "100" in checked.stdout


class TestTicker:
    def made(self) -> Served:
        return serve(adhoc_service(f"{ROOT}/examples/ticker/ticker.py:service"), interval=2)

    def test_sends_a_line_at_once_and_after_every_interval(self) -> None:
        client = self.made().connect()
        client.expect(b"tick\n")
        client.expect_nothing()
        client.served.clock.advance(2)
        client.expect(b"tick\n")

    def test_a_drain_ends_all_connections(self) -> None:
        served = self.made()
        clients = [served.connect() for _ in range(2)]
        served.drain()
        for client in clients:
            client.expect(b"tick\n")
            client.expect_end()
        assert served.core.live == set()

    def test_a_lost_connection_is_forgotten(self) -> None:
        served = self.made()
        served.connect().reset()
        assert served.core.live == set()
        served.stop()
        assert served.clock.getDelayedCalls() == []


class TestMigrated:
    SENT = b"hello\nworld\n"

    def path(self, name: str) -> str:
        return str(ROOT / "examples" / "migrated" / name)

    def test_the_server_of_netsvc_answers(self) -> None:
        client = connect(adhoc_service(f"{self.path('with_netsvc.py')}:service"))
        client.send(self.SENT)
        client.expect(self.SENT.upper())

    def test_the_handler_of_socketserver_answers_the_same(self) -> None:
        handler = runpy.run_path(self.path("with_socketserver.py"))["Shout"]
        ours, its = socket.socketpair()
        with ours, its:
            ours.sendall(self.SENT)
            ours.shutdown(socket.SHUT_WR)
            handler(its, None, None)
            assert read_exactly(ours, len(self.SENT)) == self.SENT.upper()

    def test_the_function_of_asyncio_answers_the_same(self) -> None:
        shout = runpy.run_path(self.path("with_asyncio.py"))["shout"]

        async def answers() -> bytes:
            ours, its = socket.socketpair()
            reader, writer = await asyncio.open_connection(sock=its)
            with ours:
                ours.sendall(self.SENT)
                ours.shutdown(socket.SHUT_WR)
                await shout(reader, writer)
                await writer.wait_closed()
                return read_all(ours)

        assert asyncio.run(answers()) == self.SENT.upper()


@pytest.mark.slow
class TestClassic:
    @pytest.mark.slow
    def test_its_own_tests_pass(self) -> None:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
            cwd=CLASSIC,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=10 * PATIENCE,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def test_is_found_by_its_plugin_file_alone(self, tmp_path: Path) -> None:
        place = shutil.copytree(CLASSIC, tmp_path / "classic", ignore=shutil.ignore_patterns("*.egg-info", "*cache*"))
        ran = run(TWISTD, "-n", "netsvc", "--list", env={"PYTHONPATH": f"{ROOT}:{place}"})
        for name in NAMES:
            assert f"\n{name}  " in ran.stdout, ran.stdout + ran.stderr
        assert f"from       {place}/twisted/plugins/netsvc_classic_plugins.py" in ran.stdout

    def test_its_services_are_commands_of_twistd_with_and_without_a_plugin_cache(self, tmp_path: Path) -> None:
        place = shutil.copytree(CLASSIC, tmp_path / "classic", ignore=shutil.ignore_patterns("*.egg-info", "*cache*"))
        # First on the path, so that Twisted looks at this plugin file before it has imported that of netsvc itself.
        for _ in range(2):
            ran = run(TWISTD, "--help", env={"PYTHONPATH": f"{place}:{ROOT}"})
            for name in NAMES:
                assert f" netsvc-{name} " in ran.stdout, ran.stdout + ran.stderr
        assert (place / "twisted/plugins/dropin.cache").exists()


@pytest.mark.slow
class TestInstalled:
    @pytest.fixture
    def installation(self, tmp_path_factory: pytest.TempPathFactory) -> Installation:
        return install(tmp_path_factory)

    def serve(self, installation: Installation, *words: str) -> Server:
        server = Server(
            [str(installation.program("twistd")), "-n", "--pidfile=", *words],
            cwd=installation.home,
            env=installation.environment,
        )
        server.wait_for("ready$")
        return server

    def test_the_services_are_listed_once(self, installation: Installation) -> None:
        ran = installation.run("twistd", "-n", "netsvc", "--list")
        assert (ran.returncode, ran.stderr) == (0, "")
        for name in NAMES:
            assert sum(line.startswith(f"{name}  ") for line in ran.stdout.splitlines()) == 1

    def test_the_services_are_commands_of_twistd(self, installation: Installation) -> None:
        ran = installation.run("twistd", "--help")
        assert ran.returncode == 0, ran.stderr
        for name in NAMES:
            assert f"netsvc-{name} " in ran.stdout

    def test_help_imports_no_service_and_no_reactor(self, installation: Installation) -> None:
        ran = installation.run("python", "-X", "importtime", str(installation.program("twistd")), "--help")
        assert ran.returncode == 0
        imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
        assert "netsvc.service" in imported
        assert not [name for name in imported if name.startswith("netsvc_classic")]
        assert "twisted.internet.reactor" not in imported

    def test_a_service_runs_alone(self, installation: Installation) -> None:
        with self.serve(installation, "netsvc-daytime", "--tcp", "0", "--udp", "0") as server:
            with connect_to(server.port("daytime tcp")) as client:
                client.sendall(b"what time is it?\r\n")
                assert read_all(client).endswith(b"-UTC\r\n")
            with datagrams(server.port("daytime udp")) as client:
                client.send(b"what time is it?")
                assert client.recv(1000).endswith(b"-UTC\r\n")

    def test_services_run_combined(self, installation: Installation) -> None:
        with self.serve(installation, "netsvc", "--daytime", "0", "--echo-udp", "0", "--qotd", "0") as server:
            with connect_to(server.port("daytime tcp")) as client:
                assert read_all(client).endswith(b"-UTC\r\n")
            with connect_to(server.port("qotd tcp")) as client:
                assert read_all(client).endswith(b"\r\n")
            with datagrams(server.port("echo udp")) as client:
                client.send(b"hello")
                assert client.recv(1000) == b"hello"

    def test_a_quote_file_that_is_not_there_is_one_line(self, installation: Installation) -> None:
        ran = installation.run("twistd", "-n", "--pidfile=", "netsvc", "--qotd", "0", "--qotd-file", "/nowhere/quotes")
        assert ran.returncode == 1
        assert [line for line in ran.stderr.splitlines() if "qotd file" in line] == [
            "netsvc: qotd file /nowhere/quotes: No such file or directory; give another --qotd-file"
        ]


class TestAsyncio:
    """The libraries of asyncio, in the event loop that a reactor would run."""

    WEATHER = ROOT / "examples" / "asyncio" / "weather.py"

    def test_asks_once_and_remembers(self, tmp_path: Path) -> None:
        asked: list[str] = []

        async def answer(request: web.Request) -> web.Response:
            asked.append(request.query["place"])
            return web.Response(text=f"{request.query['place']}: sunny\n")

        async def test() -> None:
            application = web.Application()
            application.router.add_get("/", answer)
            async with TestServer(application) as api:
                settings = {"api": str(api.make_url("/")), "database": str(tmp_path / "weather.sqlite")}
                served = serve(adhoc_service(f"{self.WEATHER}:service"), settings=settings)
                client, datagram = served.connect(), served.connect_datagram()
                client.send(b"Oslo\nOslo\n")
                while client.received.count(b"\n") < 2:
                    await asyncio.sleep(0.001)
                client.expect(2 * b"Oslo: sunny\n")
                datagram.send(b"Oslo")
                while not datagram.received:
                    await asyncio.sleep(0.001)
                datagram.expect(b"Oslo: sunny")
                client.reset()

        asyncio.run(asyncio.wait_for(test(), PATIENCE))
        assert asked == ["Oslo"]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "reactor",
        [
            "asyncio",
            pytest.param(
                "uvloop",
                marks=pytest.mark.skipif(
                    not find_spec("uvloop"), reason="uvloop has no wheel for this Python on this machine"
                ),
            ),
        ],
    )
    def test_it_serves_on_each_reactor_that_runs_asyncio(self, reactor: str, tmp_path: Path) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"sunny\n")

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as api:
            threading.Thread(target=api.serve_forever, daemon=True).start()
            words = [
                f"--weather-api=http://127.0.0.1:{api.server_port}",
                f"--weather-database={tmp_path}/weather.sqlite",
            ]
            words += ["--serve", f"{self.WEATHER}:service", "--weather=127.0.0.1:0", "--weather-udp=127.0.0.1:0"]
            with Server.twistd(*words, before=("--reactor", reactor)) as server:
                with connect_to(server.port("weather tcp")) as client:
                    client.sendall(b"Oslo\nRome\n")
                    client.shutdown(1)
                    assert read_all(client) == b"sunny\nsunny\n"
                with datagrams(server.port("weather udp")) as asking:
                    asking.send(b"Oslo")
                    assert asking.recv(100) == b"sunny"
            api.shutdown()
