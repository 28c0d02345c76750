"""Runs other twistd plugins in the same process, and provides the `guard:` endpoint for any Twisted program."""
