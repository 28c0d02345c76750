"""The `netsvc` command: it serves, and it has the clients to talk to what serves."""
