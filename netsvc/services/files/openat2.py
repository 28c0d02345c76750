"""Calls openat2(2), which neither Python nor the C library wraps."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import lru_cache
from typing import Any

__all__ = ["open_beneath", "supported"]

#: From linux/openat2.h: no step of the resolution may leave the directory, nor follow a link as in /proc/PID/fd.
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08

#: The number on every architecture that took part in the unified table (Linux 5.1), which is all but these.
_NUMBER = 437
_OTHER_NUMBERS = ("alpha", "mips")


class _How(ctypes.Structure):
    """`struct open_how`."""

    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_SIZE = ctypes.sizeof(_How)
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_How),
    ctypes.c_size_t,
)


@lru_cache(maxsize=8)
def _how(flags: int) -> Any:
    # The kernel only reads it.
    return ctypes.pointer(_How(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS))


def open_beneath(directory: int, name: bytes, flags: int) -> int:
    """Open `name` below the descriptor `directory`; the kernel itself sees that it does not leave it.

    Returns a descriptor. Raises `OSError`: EXDEV for a name that would leave the directory (an absolute link
    always does), EAGAIN when a directory moved meanwhile so that the kernel cannot tell, EINTR for a signal.
    """
    descriptor: int = _syscall(_NUMBER, directory, name, _how(flags), _SIZE)
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return descriptor


def supported(directory: int, machine: str = platform.machine()) -> bool:
    """Try it: a kernel before 5.6 lacks it (ENOSYS), and a seccomp filter may forbid it (EPERM)."""
    if sys.platform != "linux" or machine.startswith(_OTHER_NUMBERS):
        return False
    try:
        os.close(open_beneath(directory, b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
