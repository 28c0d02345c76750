"""The small services of the early Internet, for netsvc."""
