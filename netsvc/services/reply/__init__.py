"""Answers everything with a fixed text, as the servers of socket tutorials do."""
