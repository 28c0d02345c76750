"""Plain data: what is to run, where and with which limits, and its status. Imports no Twisted."""
