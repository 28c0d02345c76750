"""The fast reactor and its transports, independent of the rest of netsvc."""
