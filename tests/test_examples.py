"""The examples are whole, keep the contract, and work when they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from netsvc.testing import build, check_service, connect
from tests.installation import Installation, install
from tests.processes import PATIENCE, ROOT, TWISTD, Server, datagrams, read_all, read_exactly, run
from tests.processes import connect as connect_to

SHOUT = ROOT / "examples" / "shout"
CLASSIC = ROOT / "examples" / "classic"
NAMES = ("chargen", "daytime", "discard", "qotd", "time")


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

    def test_keeps_the_contract_and_has_good_habits(self, target: str) -> None:
        assert check_service(target, samples={"tcp": [b"hello\n"], "udp": [b"hello"]}).notes == ()

    def test_shouts(self, target: str) -> None:
        _, transport = connect(build(target), "tcp")
        transport.feed(b"hello, \xe4\xb8\x96!")
        assert transport.value() == b"HELLO, \xe4\xb8\x96!"


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
                # No answer is longer than its question, unless the limit `amplify` says so.
                client.send(b"what time is it?" * 10)
                assert client.recv(1000).endswith(b"-UTC\r\n")

    def test_services_run_combined(self, installation: Installation) -> None:
        words = ["--daytime", "0", "--echo-udp", "0", "--time", "0", "--chargen", "0", "--chargen-udp", "0"]
        with self.serve(installation, "netsvc", *words, "--discard", "0", "--qotd", "0") as server:
            with connect_to(server.port("daytime tcp")) as client:
                assert read_all(client).endswith(b"-UTC\r\n")
            with connect_to(server.port(r"\btime tcp")) as client:
                assert len(read_all(client)) == 4
            with connect_to(server.port("qotd tcp")) as client:
                assert read_all(client).endswith(b"\r\n")
            with connect_to(server.port("chargen tcp")) as client:
                page = read_exactly(client, 95 * 74)
                assert read_exactly(client, 1_000_000)[: len(page)] == page
            with datagrams(server.port("chargen udp")) as client:
                client.send(b"x" * 600)
                assert client.recv(1000) == page[:512]
            with datagrams(server.port("echo udp")) as client:
                client.send(b"hello")
                assert client.recv(1000) == b"hello"
            with connect_to(server.port("discard tcp")) as client:
                client.sendall(b"x" * 1_000_000)

    def test_a_drain_does_not_wait_for_endless_characters(self, installation: Installation) -> None:
        with self.serve(installation, "netsvc", "--chargen", "0", "--drain", "600") as server:
            with connect_to(server.port("chargen tcp")) as client:
                read_exactly(client, 100)
                server.process.terminate()
                while client.recv(65536):
                    pass
            server.wait()

    def test_a_quote_file_that_is_not_there_is_one_line(self, installation: Installation) -> None:
        ran = installation.run("twistd", "-n", "--pidfile=", "netsvc", "--qotd", "0", "--qotd-file", "/nowhere/quotes")
        assert ran.returncode == 1
        assert [line for line in ran.stderr.splitlines() if "qotd file" in line] == [
            "netsvc: qotd file /nowhere/quotes: No such file or directory; give another --qotd-file"
        ]
