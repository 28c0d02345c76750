"""Replaces the running process by the installed program, without refusing a connection."""
