"""The local control socket, by which commands reach a running process."""
