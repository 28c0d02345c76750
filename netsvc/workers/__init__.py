"""Runs a plan in several processes that share its ports."""
