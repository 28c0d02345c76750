"""`python -m netsvc` is the `netsvc` command."""

from __future__ import annotations

from netsvc.client.command import main

if __name__ == "__main__":
    main(prog_name="netsvc")
