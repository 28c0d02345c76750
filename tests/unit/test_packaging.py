"""A built distribution holds every package: `packages = find:` would drop twisted.plugins, so they are listed."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import netsvc
from tests.builders.processes import ROOT

PACKAGE = Path(netsvc.__file__).parent


def test_setup_cfg_lists_every_package() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", "utf-8")
    present = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.glob("**/__init__.py")}
    assert set(config["options"]["packages"].split()) == present | {"twisted.plugins"}


def test_the_version_stands_in_one_place() -> None:
    sources = [*PACKAGE.rglob("*.py"), ROOT / "setup.cfg", ROOT / "pyproject.toml", ROOT / "docs/conf.py"]
    sources += [path for path in (ROOT / "deploy").iterdir() if path.suffix != ".txt"]
    version = re.compile(rf"(?<![\d.]){re.escape(netsvc.__version__)}(?![\d.])")
    assert [path for path in sources if version.search(path.read_text("utf-8"))] == [PACKAGE / "__init__.py"]
