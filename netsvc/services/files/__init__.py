"""Sends the files below one directory, and nothing from outside it."""
