"""The sdist is the whole checkout, the wheel is what is imported, and what they hold works when it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from netsvc import __version__
from tests.builders.installation import INSTALLING, Installation, install, lists_all, requirements, shell
from tests.builders.processes import ROOT

#: Tests that need the files of an sdist, and tests that use most of the wheel.
OF_THE_SDIST = (
    "tests/docs",
    "tests/net/test_echo.py",
    "tests/process/test_twistd.py",
    "tests/unit/test_guard.py",
    "tests/unit/test_packaging.py",
)


def _venv(directory: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", directory], check=True, timeout=INSTALLING)
    return directory / "bin"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return install(tmp_path_factory)


@pytest.fixture
def sdist(installation: Installation) -> Path:
    [path] = installation.dist.glob("*.tar.gz")
    return path


@pytest.fixture
def wheel(installation: Installation) -> Path:
    [path] = installation.dist.glob("*.whl")
    return path


@pytest.mark.slow
class TestBuilt:
    def test_both_are_accepted_by_the_index(self, sdist: Path, wheel: Path, tmp_path: Path) -> None:
        shell(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=tmp_path)

    def test_the_sdist_holds_what_the_repository_holds(self, sdist: Path) -> None:
        if not (ROOT / ".git").exists() or not shutil.which("git"):
            pytest.skip("needs git, and a repository")
        tracked = set(shell("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines())
        with tarfile.open(sdist) as archive:
            held = {name.name.partition("/")[2] for name in archive if name.isfile()}
        made = {name for name in held if name == "PKG-INFO" or name.startswith("netsvc.egg-info/")}
        assert held - made == tracked
        assert "PKG-INFO" in made

    def test_the_wheel_holds_every_file_of_the_packages_and_the_plugin_file(self, wheel: Path) -> None:
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        # Built wherever the tests run.
        names.discard("netsvc/reactor/native.abi3.so")
        ours = {
            str(path.relative_to(ROOT))
            for path in (ROOT / "netsvc").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".c", ".so")
        }
        manual = f"netsvc-{__version__}.data/data/share/man/man1/netsvc.1"
        assert names == ours | {"twisted/plugins/netsvc_plugins.py", manual}
        assert {"netsvc/py.typed", "netsvc/admin/page/index.html"} <= names
        assert any(name.startswith("netsvc/cli/scaffold/") for name in names)

    def test_it_brings_every_command(self, installation: Installation) -> None:
        lists_all(installation.home / "bin", installation.work)

    def test_every_version_is_the_one_of_the_package(
        self, installation: Installation, sdist: Path, wheel: Path
    ) -> None:
        assert sdist.name == f"netsvc-{__version__}.tar.gz"
        has_extension = "netsvc/reactor/native.abi3.so" in zipfile.ZipFile(wheel).namelist()
        kind = "cp311-abi3-linux" if has_extension else "py3-none"
        assert wheel.name.startswith(f"netsvc-{__version__}-{kind}")
        for words in (("netsvc", "--version"), ("twistd", "netsvc", "--version"), ("netsvc", "run", "--version")):
            assert installation.run(*words).stdout == f"netsvc {__version__}\n"


@pytest.mark.slow
def test_the_wheel_passes_the_tests_of_the_sdist_with_the_oldest_dependencies(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    # There is no netsvc to import but the one that is installed.
    for name in ("netsvc", "twisted", "netsvc.egg-info"):
        shutil.rmtree(source / name)
    scripts = _venv(tmp_path / "venv")
    oldest = [line.replace(" >= ", "==") for line in requirements()]
    needed = ("aiohttp", "aiosqlite", "jsonschema", "hypothesis", "pytest", "pytest-twisted")
    shell(scripts / "pip", "install", "-q", wheel, *oldest, *needed, cwd=tmp_path)
    lists_all(scripts, tmp_path)
    shell(scripts / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *OF_THE_SDIST, cwd=source)
