"""Finds code of this process that has changed since it was loaded: a reload does not load it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from netsvc.base.text import escape

#: Files that are named, at most.
MOST_NAMED = 3

#: What a file has if nothing has changed it; None if there is none.
_State = tuple[int, int, int] | None


class LoadedCode:
    """The files of the modules of this process, as they were when it became ready or when they were loaded later."""

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def remember(self) -> None:
        """Note the state of each file that is not known yet."""
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if isinstance(path, str) and path not in self._states:
                self._states[path] = _state(path)

    def changed(self) -> list[str]:
        """Return the paths of the files that were changed or removed."""
        paths = [path for path, state in self._states.items() if _state(path) != state]
        self.remember()
        return paths

    def hints(self, cure: str) -> Sequence[str]:
        """Return a line about changed files, if there are any; `cure` names what loads them."""
        paths = self.changed()
        if not paths:
            return []
        named = ", ".join(map(escape, paths[:MOST_NAMED]))
        more = f" and {len(paths) - MOST_NAMED} more files" if len(paths) > MOST_NAMED else ""
        return [f"code is not reloaded: {named}{more} changed since the start; {cure}"]


def _state(path: str) -> _State:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
