"""The application that twistd runs: a server with its log, admin address, control socket and upgrades."""
