"""Other twistd plugins in the same process, and `guard:` for plain Twisted programs."""
