"""The units under a real systemd: a user manager in namespaces, with the steps of docs/howto/systemd.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE, ROOT

pytestmark = pytest.mark.slow

SYSTEMD = "/usr/lib/systemd/systemd"
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/howto/systemd.md").read_text("utf-8"), re.S)
#: systemd runs as a user manager only where systemd has booted, or seems to have.
START = """
ip link set lo up && mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR" && exec "$@"
"""
#: In the namespaces of the manager: what is sent, by TCP and by UDP, and what is answered.
ASK = """
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for host in ("127.0.0.1", "::1"):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as client:
            client.settimeout(60)
            client.connect((host, 9001))
            client.send(b"hello")
            print(client.recv(100).decode())
"""


class Manager:
    """A user manager of systemd; `do` runs a command in its namespaces."""

    def __init__(self, directory: Path) -> None:
        self.units = directory / "config/systemd/user"
        self.units.mkdir(parents=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": "/run/user",
            "XDG_CONFIG_HOME": str(directory / "config"),
        }
        inside = ["unshare", "--mount", "--net", "sh", "-c", START, "sh"]
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*inside, SYSTEMD, "--user", "--unit=basic.target", "--log-target=console"],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def do(self, *words: str) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", f"--target={self.process.pid}", "--mount", "--net", *words]
        return subprocess.run(
            inside, env=self.environment, capture_output=True, text=True, timeout=2 * PATIENCE, check=False
        )

    def step(self, *words: str) -> str:
        ended = self.do(*words)
        shown = "" if ended.returncode == 0 else self.do("systemctl", "--user", "status", "netsvc").stdout
        assert ended.returncode == 0, f"{words}\n{ended.stdout}{ended.stderr}{shown}{self.log.read_text()}"
        return ended.stdout

    def documented(self, block: str) -> None:
        """Take each step of a block of the page that is one of systemctl."""
        for step in re.findall(r"systemctl ([^&\n]+)", block):
            self.step("systemctl", "--user", *step.split())

    def answers(self) -> list[str]:
        return self.step(sys.executable, "-c", ASK).split()

    def pid(self) -> str:
        return self.step("systemctl", "--user", "show", "--property=MainPID", "netsvc").strip()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    if os.geteuid() != 0 or not Path(SYSTEMD).exists() or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("needs root, systemd, unshare, nsenter and ip")
    made = Manager(tmp_path)
    try:
        deadline = time.monotonic() + PATIENCE / 3
        while made.do("systemctl", "--user", "is-active", "basic.target").returncode:
            if made.process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"systemd does not run a user manager here: {made.log.read_text()[-500:]}")
            time.sleep(0.1)
        yield made
    finally:
        made.do("systemctl", "--user", "stop", "netsvc.service", "netsvc.socket", "netsvc-udp.socket")
        made.process.terminate()
        try:
            made.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            made.process.kill()
            made.process.wait()


def install(manager: Manager, directory: Path) -> Path:
    """Install the units, for this checkout and a file as `netsvc init` writes it, and without what a user may not."""
    config = directory / "netsvc.toml"
    program = f"{sys.executable} -m netsvc"
    subprocess.run([*program.split(), "init", config], check=True, timeout=PATIENCE, cwd=ROOT, capture_output=True)
    text = (ROOT / "deploy/netsvc.service").read_text("utf-8")
    common, _, install_section = re.sub(r"# A user that exists only(?s:.*?)(?=\[Install\])", "", text).partition(
        "[Inst"
    )
    common = common.replace("/opt/netsvc/bin/netsvc", program).replace("/etc/netsvc/netsvc.toml", str(config))
    common += f"Environment=PYTHONPATH={ROOT}\nWorkingDirectory={directory}\n\n"
    install_section = install_section.replace("multi-user.target", "basic.target")
    (manager.units / "netsvc.service").write_text(f"{common}[Inst{install_section}")
    for name in ("netsvc.socket", "netsvc-udp.socket"):
        shutil.copy(ROOT / "deploy" / name, manager.units)
    return config


def test_the_steps_of_the_page_in_their_order(manager: Manager, tmp_path: Path) -> None:
    config = install(manager, tmp_path)
    [first] = [block for block in BLOCKS if "daemon-reload" in block]
    [second] = [block for block in BLOCKS if "enable --now netsvc.socket" in block]
    assert BLOCKS.index(first) < BLOCKS.index(second)
    manager.documented(first)
    assert manager.answers() == ["hello"] * 4
    manager.documented(second)
    assert manager.answers() == ["hello"] * 4
    before = manager.pid()
    # The sockets stay open: what comes meanwhile starts the service.
    manager.step("systemctl", "--user", "stop", "netsvc")
    assert manager.answers() == ["hello"] * 4
    assert manager.pid() not in (before, "MainPID=0")
    # By their names as well, and changed by a reload.
    written = re.sub(r"^(tcp|udp) = 9001$", r'\1 = "systemd:echo\1"', config.read_text(), flags=re.M)
    config.write_text(written.replace("echotcp", "echo").replace("echoudp", "echo-udp"))
    assert "systemd:echo-udp" in config.read_text()
    manager.step("systemctl", "--user", "restart", "netsvc")
    assert manager.answers() == ["hello"] * 4
    manager.step("systemctl", "--user", "reload", "netsvc")
    assert manager.answers() == ["hello"] * 4
