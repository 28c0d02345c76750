"""The `netsvc` command, and `python -m netsvc`."""

from __future__ import annotations

import sys

from netsvc.base.signals import process_signals

__all__ = ["main"]


def main() -> None:
    """Run the `netsvc` command."""
    if sys.argv[1:2] == ["run"]:
        # Before the imports of the command, which take their time: a signal may be sent to the new process at once.
        process_signals.take_over()
    from netsvc.cli.command import main as command

    command(prog_name="netsvc")


if __name__ == "__main__":
    main()
