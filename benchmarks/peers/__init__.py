"""The Python servers that netsvc is compared with: the least code that does the same."""
