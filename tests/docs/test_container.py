"""The image: what its file says, and, where there are the tools for it, the image itself, built and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.builders.installation import requirements
from tests.builders.processes import PATIENCE, ROOT, Server, connect, datagrams, free_port, read_exactly, run

LINES = [
    (word, rest)
    for word, _, rest in (line.partition(" ") for line in (ROOT / "deploy/Dockerfile").read_text("utf-8").splitlines())
    if word and word != "#"
]
#: The last stage: what is run.
IMAGE = LINES[max(place for place, (word, _) in enumerate(LINES) if word == "FROM") :]
TOOLS = ("buildah", "debootstrap", "chroot", "unshare")
#: Seconds: Debian and the wheels have to be downloaded.
BUILDING = 600


def the(word: str) -> str:
    [rest] = [rest for each, rest in IMAGE if each == word]
    return rest


def test_it_runs_as_nobody_in_particular_and_not_as_root() -> None:
    user, _, group = the("USER").partition(":")
    # As numbers: Kubernetes cannot tell of a name that it is not root.
    assert int(user) > 0
    assert int(group) > 0


def test_no_shell_stands_between_the_runtime_and_the_server() -> None:
    assert json.loads(the("ENTRYPOINT"))[1:] == ["-n", "--pidfile=", "netsvc"]
    assert json.loads(the("CMD")) == ["--tcp", "9001", "--udp", "9001"]
    assert the("STOPSIGNAL") == "SIGTERM"
    assert set(the("EXPOSE").split()) == {"9001/tcp", "9001/udp"}


@pytest.mark.source
def test_only_what_is_built_from_goes_to_the_build() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    for name in (line[1:] for line in lines if line.startswith("!")):
        assert (ROOT / name).exists(), name
    # Also what the wheel has besides Python modules, as the manual page: without it, the wheel cannot be built.
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    shipped = [setup["metadata"]["license_files"], *setup["options.data_files"].values()]
    for name in " ".join(shipped).split():
        assert f"!{name}" in lines, name


def test_what_the_documents_build_and_run_is_this_file() -> None:
    text = (ROOT / "docs/howto/containers.md").read_text("utf-8")
    assert "docker build -f deploy/Dockerfile -t netsvc .\n" in text
    assert f"user {the('USER').partition(':')[0]}" in text
    published = set(re.findall(r"-p (\d+):\1(/udp)?", text))
    assert {f"{port}{kind or '/tcp'}" for port, kind in published} == set(the("EXPOSE").split())
    for program in re.findall(r"docker exec \S+ (\S+)", text):
        assert program == json.loads(the("HEALTHCHECK").partition(" CMD ")[2])[0]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_all_that_is_installed_has_a_version_and_a_hash(name: str) -> None:
    text = re.sub(r"#.*\n", "", (ROOT / "deploy" / name).read_text("utf-8")).replace("\\\n", "")
    pinned = {}
    for line in text.splitlines():
        found = re.match(r"([a-z0-9-]+)==(\S+)( ; [^;]*?)?( +--hash=sha256:[0-9a-f]{64})+ *$", line)
        assert found is not None, line
        pinned[found[1]] = found[2]
    if name == "requirements-build.txt":
        assert list(pinned) == ["setuptools"]
        return
    for line in requirements():
        name, oldest = line.split(" >= ")
        name = re.sub(r"\[.*\]|[._-]", lambda part: "" if part[0].startswith("[") else "-", name).lower()
        assert [int(part) for part in pinned[name].split(".")] >= [int(part) for part in oldest.split(".")]


def test_nothing_is_installed_but_that() -> None:
    installing = [rest for word, rest in LINES if word == "RUN" and " install " in rest]
    assert len(installing) == 3
    for command in installing:
        assert "--require-hashes" in command or "--no-deps --no-index /wheel/" in command


@dataclass
class Image:
    """An image's file system, and a way to run programs in it as a container runtime would."""

    root: Path

    #: Directories of this machine that are mounted, to be read only, by their paths in the image.
    mounted: dict[str, Path] = field(default_factory=dict)

    def command(self, *words: str) -> list[str]:
        """Run in the image's root, which cannot be written, with its user and without any privilege."""
        user, _, group = the("USER").partition(":")
        mounts = ['mount --bind "$0" "$0"']
        for path, directory in self.mounted.items():
            there = f"{self.root}{path}"
            # As a container runtime does, before the root is made read-only.
            mounts += [f"mkdir -p {there}", f"mount --bind {directory} {there}", f"mount -o remount,bind,ro {there}"]
        mounts += ['mount -o remount,bind,ro "$0"', 'mount -t proc proc "$0/proc"', 'exec "$@"']
        inside = [str(shutil.which("chroot")), f"--userspec={user}:{group}", "--groups=", str(self.root), *words]
        return ["unshare", "--mount", "sh", "-c", " && ".join(mounts), str(self.root), *inside]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={"PATH": os.defpath},
        )

    def start(self, *words: str, **variables: str) -> Server:
        return Server(self.command(*json.loads(the("ENTRYPOINT")), *words), env={"PYTHONPATH": "", **variables})


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Build the image on a base of Debian's, and mount it."""
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"needs root, and {', '.join(TOOLS)}")
    place = tmp_path_factory.mktemp("image")
    try:
        yield from built(place)
    finally:
        # It is a gigabyte.
        shutil.rmtree(place)


def built(place: Path) -> Iterator[Image]:
    base = place / "base"
    do("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "stable", str(base))
    # It is to trust whom this machine trusts, or no wheel could be downloaded from behind some companies' proxies.
    trusted = Path("/etc/ssl/certs/ca-certificates.crt")
    if trusted.exists():
        shutil.copy(trusted, base / "etc/ssl/certs")
        (base / "etc/pip.conf").write_text(f"[global]\ncert = {trusted}\n")
    buildah = ["buildah", "--storage-driver=vfs", f"--root={place}/storage", f"--runroot={place}/run"]
    scratch = do(*buildah, "from", "scratch").strip()
    do(*buildah, "add", "-q", scratch, str(base), "/")
    do(*buildah, "commit", "-q", scratch, "localhost/base")
    build = ["bud", "--isolation=chroot", "--build-arg=BASE=localhost/base", "-f", str(ROOT / "deploy/Dockerfile")]
    do(*buildah, *build, "-t", "localhost/netsvc", str(ROOT))
    container = do(*buildah, "from", "localhost/netsvc").strip()
    root = Path(do(*buildah, "mount", container).strip())
    # The directories of pytest are for root alone, and others have to pass them.
    for above in (root, *root.parents):
        if above.is_relative_to(place.parent.parent):
            above.chmod(above.stat().st_mode | 0o011)
    yield Image(root)
    do(*buildah, "umount", container)


def do(*words: str) -> str:
    # What is mounted on the way, /proc and /sys among it, is so for this command alone: nothing of it may be there
    # when the directory is removed, however the command ends.
    alone = ("unshare", "--mount", "--fork", "--kill-child", *words)
    ended = subprocess.run(alone, capture_output=True, text=True, timeout=BUILDING, check=False, cwd=ROOT)
    assert ended.returncode == 0, f"{' '.join(words)}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


@pytest.mark.slow
class TestTheImage:
    def test_serves_from_a_root_that_cannot_be_written_and_drains_at_term(self, image: Image) -> None:
        port = free_port()
        with image.start("--tcp", str(port), "--udp", str(port), "--drain", "0.2") as server:
            server.wait_for("ready$")
            # Neither a log line about root, nor one about a cache of plugins that cannot be written.
            assert "#warn" not in server.log
            assert "#error" not in server.log
            with connect(port) as stream, datagrams(port) as peer:
                stream.sendall(b"hello")
                assert read_exactly(stream, 5) == b"hello"
                peer.send(b"hello")
                assert peer.recv(100) == b"hello"
                health = image.run(*json.loads(the("HEALTHCHECK").partition(" CMD ")[2]))
                assert health.returncode == 0, health.stderr
                server.stop()
            assert image.run(*json.loads(the("HEALTHCHECK").partition(" CMD ")[2])).returncode == 1
            assert "draining: 1 connection" in server.log

    def test_finds_every_service_without_importing_any_plugin_file(self, image: Image) -> None:
        [cache] = image.root.glob("opt/netsvc/lib/python3*/site-packages/twisted/plugins/dropin.cache")
        assert b"netsvc_plugins" in cache.read_bytes()
        listed = image.run("/opt/netsvc/bin/netsvc", "list")
        assert listed.returncode == 0
        assert "echo" in listed.stdout
        assert listed.stderr == ""

    def test_has_nothing_of_what_it_was_built_with(self, image: Image) -> None:
        for gone in ("source", "wheel", "build"):
            assert not (image.root / gone).exists()
        found = [str(path) for path in image.root.rglob("*pip*") if re.match(r"pip\d*([.-].*)?$|ensurepip$", path.name)]
        assert [path for path in found if "/proc/" not in path and not path.endswith("/etc/pip.conf")] == []
        for program in ("/opt/netsvc/bin/python3", "/usr/bin/python3"):
            assert image.run(program, "-m", "pip", "--version").returncode == 1

    def test_runs_a_configuration_file_that_is_mounted_and_reloads_it(self, image: Image) -> None:
        # Not below the directory of pytest, which only root may pass.
        conf = Path(tempfile.mkdtemp(prefix="conf", dir="/tmp"))
        try:
            conf.chmod(0o755)
            here = replace(image, mounted={"/etc/netsvc": conf})
            text = (ROOT / "docs/howto/containers.md").read_text("utf-8")
            [shown] = re.findall(r"-v \./conf:(\S+):ro netsvc (--config \S+)\n", text)
            [reload] = re.findall(r"docker exec netsvc (.*)\n", text)
            assert shown[0] == "/etc/netsvc"
            ports = free_port(), free_port()
            for number, port in enumerate(ports):
                written = conf / "new"
                written.write_text(f'drain = 0.2\n[services.echo]\ntcp = "127.0.0.1:{port}"\n')
                written.chmod(0o644)
                # As an editor does.
                written.replace(conf / "netsvc.toml")
                if number == 0:
                    server = here.start(*shown[1].split())
                    server.wait_for("ready$")
                else:
                    inside = [f"--target={server.process.pid}", f"--root=/proc/{server.process.pid}/root", "--mount"]
                    ended = subprocess.run(
                        ["nsenter", *inside, "--setuid=65532", "--setgid=65532", *reload.split()],
                        capture_output=True, text=True, timeout=PATIENCE, check=False,
                    )  # fmt: skip
                    assert ended.returncode == 0, ended.stdout + ended.stderr
                with connect(port) as stream:
                    stream.sendall(b"hello")
                    assert read_exactly(stream, 5) == b"hello"
            health = here.run(*json.loads(the("HEALTHCHECK").partition(" CMD ")[2]))
            assert health.returncode == 0, health.stderr
            server.stop()
        finally:
            shutil.rmtree(conf)

    def test_serves_the_service_of_the_tutorial_from_a_mounted_directory(self, image: Image, tmp_path: Path) -> None:
        text = (ROOT / "docs/tutorial.md").read_text("utf-8")
        [shown] = re.findall(r"docker run .* -v \./conf:(\S+):ro -e (\w+)=(\S+) netsvc (.*)\n", text)
        to, variable, value, words = shown
        assert run(sys.executable, "-m", "netsvc", "new", "lights", cwd=tmp_path).returncode == 0
        saved = dict(re.findall(r"<!-- write: (\S+) -->\n```\w+\n(.*?)```$", text, re.S | re.M))
        conf = Path(tempfile.mkdtemp(prefix="conf", dir="/tmp"))
        try:
            # As pip unpacks the wheel.
            shutil.copytree(tmp_path / "lights/twisted", conf / "lib/twisted")
            (conf / "lib/lights.py").write_text(saved["lights.py"])
            port = free_port()
            configuration = saved["netsvc.toml"].replace("9001", str(port)).replace("9100", "0")
            (conf / "netsvc.toml").write_text(configuration)
            for path in (conf, *conf.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
            here = replace(image, mounted={to: conf})
            with here.start(*words.split(), **{variable: value}) as server:
                server.wait_for("ready$")
                assert "#warn" not in server.log and "#error" not in server.log
                with connect(port) as stream:
                    stream.sendall(b"ON hall\n")
                    assert read_exactly(stream, 3) == b"OK\n"
        finally:
            shutil.rmtree(conf)

    def test_nothing_of_the_program_can_be_changed_by_whoever_runs_it(self, image: Image) -> None:
        user = int(the("USER").partition(":")[0])
        for path in (image.root / "opt/netsvc").rglob("*"):
            status = path.lstat()
            assert status.st_uid != user
            assert path.is_symlink() or not status.st_mode & 0o002, path
