"""Sends back what comes (RFC 862)."""
