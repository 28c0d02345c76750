"""Builds the optional C extension, if that is possible here. Everything else about the project is in setup.cfg.

It is left out on other systems than Linux, without a C compiler or Python's headers, on other Pythons than CPython with
its GIL, and if NETSVC_NATIVE is 0 in the environment. Then the wheel is for every system, and Python does the same.
"""

import os
import platform
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup


def _why_not() -> str:
    if os.environ.get("NETSVC_NATIVE") == "0":
        return "NETSVC_NATIVE=0"
    if sys.platform != "linux":
        return "not on Linux"
    if platform.python_implementation() != "CPython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "not CPython with a GIL"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no headers of Python"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    return "" if shutil.which(compiler[0]) else "no C compiler"


if reason := _why_not():
    print(f"netsvc is built without its C extension: {reason}", file=sys.stderr)
    setup()
else:
    setup(
        ext_modules=[
            Extension(
                "netsvc.reactor.native",
                ["netsvc/reactor/native.c"],
                # One wheel for Python 3.11 and later.
                define_macros=[("Py_LIMITED_API", "0x030b0000")],
                py_limited_api=True,
                # An installation does not fail because a compiler does.
                optional=True,
            )
        ],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
