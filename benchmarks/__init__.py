"""netsvc against its peers; see `python -m benchmarks --help`."""
