"""The services that come with netsvc, a folder each."""
