"""The C extension of the reactor, if it was built for this Python and is not turned off.

It does the same as the Python code beside it, for less CPU time. `NETSVC_NATIVE=0` in the environment turns it off.
`python -m netsvc.reactor.extension` says whether it is used.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["VARIABLE", "native", "reason"]

#: The variable of the environment that turns it off with the value 0, when it is imported and when it is built.
VARIABLE = "NETSVC_NATIVE"

#: Changes with what is expected of the extension: `netsvc/reactor/native.c` has the same number.
INTERFACE = 2

native: Any = None
#: Why it is not used; empty if it is.
reason = ""

if os.environ.get(VARIABLE) == "0":
    reason = f"{VARIABLE}=0"
else:
    try:
        from netsvc.reactor import native as _native
    except ImportError as error:
        reason = f"not built: {error}" if error.name is None else "not built"
    else:
        # A checkout may have one that was built from an older source.
        if getattr(_native, "INTERFACE", 0) == INTERFACE:
            native = _native
        else:
            reason = "built from another version: install netsvc again"

if __name__ == "__main__":
    print(f"not used: {reason}" if reason else "used")
