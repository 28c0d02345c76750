"""Reads a configuration file, and writes one, and its schema."""
