"""The unit files: what systemd says about them, and what they call."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from netsvc.app.application import STOP_GRACE
from netsvc.cli.command import SUBCOMMANDS
from netsvc.control.location import SYSTEM_BASE, config_keys
from netsvc.plan.plan import DEFAULT_DRAIN
from tests.builders.processes import PATIENCE, ROOT

UNITS = sorted([*(ROOT / "deploy").glob("*.service"), *(ROOT / "deploy").glob("*.socket")])
SERVICE = (ROOT / "deploy/netsvc.service").read_text("utf-8")


def setting(name: str, text: str = SERVICE) -> str:
    [value] = re.findall(rf"^{name}=(.*)$", text, re.M)
    return str(value)


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    return subprocess.run(
        ["systemd-analyze", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_systemd_finds_no_fault_in_any(tmp_path: Path) -> None:
    copies = []
    for unit in UNITS:
        copies.append(str(tmp_path / unit.name))
        # Where the programs are on this machine.
        text = unit.read_text("utf-8").replace("/opt/netsvc/bin", sysconfig.get_path("scripts"))
        Path(copies[-1]).write_text(text, "utf-8")
    verified = analyze("verify", "--man=no", "--recursive-errors=no", *copies)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_what_an_intruder_could_do_is_little() -> None:
    judged = analyze("security", "--offline=true", "--no-pager", str(ROOT / "deploy/netsvc.service"))
    exposure = re.search(r"Overall exposure level for netsvc.service: ([0-9.]+)", judged.stdout)
    assert exposure, judged.stdout + judged.stderr
    assert float(exposure[1]) < 2.0


@pytest.mark.parametrize("name", ["ExecStart", "ExecReload"])
def test_what_the_service_calls_are_commands(name: str) -> None:
    program, command, option, file = shlex.split(setting(name))
    assert program == "/opt/netsvc/bin/netsvc"
    assert command in SUBCOMMANDS
    assert (option, file) == ("--config", "/etc/netsvc/netsvc.toml")


def test_the_directory_of_the_control_sockets_is_that_of_the_configuration_file() -> None:
    file = shlex.split(setting("ExecStart"))[-1]
    [key] = config_keys(file)
    assert f"/run/{setting('RuntimeDirectory')}" == f"{SYSTEM_BASE}/{key}"
    assert setting("RuntimeDirectoryMode") == "0700"


def test_it_is_not_killed_while_it_drains() -> None:
    assert float(setting("TimeoutStopSec")) >= DEFAULT_DRAIN + STOP_GRACE


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.suffix == ".socket"], ids=lambda unit: unit.name)
def test_a_socket_has_the_name_that_its_comment_says(unit: Path) -> None:
    text = unit.read_text("utf-8")
    assert f"systemd:{setting('FileDescriptorName', text)}`" in text
    assert setting("Service", text) == "netsvc.service"


def test_what_the_documents_install_is_what_there_is() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/howto/systemd.md").read_text("utf-8"), re.S)
    [installing] = [block for block in blocks if "daemon-reload" in block]
    assert sorted(re.findall(r"deploy/\S+", installing)) == [f"deploy/{unit.name}" for unit in UNITS]
    program, _, _, file = shlex.split(setting("ExecStart"))
    assert f"{Path(program).parent}/pip install ." in installing
    assert f"{program} init {file}\n" in installing
    for name in re.findall(r"netsvc\S*\.socket", "".join(blocks)):
        assert ROOT / "deploy" / name in UNITS
