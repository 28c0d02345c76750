"""What the figures were measured on: the machine, the versions, the date."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import netsvc
from benchmarks.generators import compiler
from benchmarks.servers import program

__all__ = ["describe"]


def _first_line(*words: str) -> str:
    """Return the first line that a command prints, or nothing."""
    with suppress(OSError, subprocess.SubprocessError):
        ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
        return next(iter((ended.stdout + ended.stderr).strip().splitlines()), "")
    return ""


def _processor() -> str:
    with suppress(OSError):
        if match := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return match[1].strip()
    return platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _version(distribution: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return ""


def describe() -> dict[str, str]:
    """Return what is known, by name; nothing in it says where on the machine anything lies."""
    versions = {
        "netsvc": netsvc.__version__,
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Twisted": _version("twisted"),
        "uvloop": _version("uvloop"),
        "nginx": _first_line(program("nginx"), "-v").rpartition("/")[2],
        "ngircd": _first_line(program("ngircd"), "--version").removeprefix("ngIRCd ").partition("-")[0],
        "InspIRCd": _first_line(program("inspircd"), "--version").removeprefix("InspIRCd-"),
        "C compiler": _first_line(compiler() or "cc", "--version"),
    }
    return {
        "Date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "Processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "Memory": _memory(),
        "Kernel": f"{platform.system()} {platform.release()}",
        **{name: version for name, version in versions.items() if version},
    }
