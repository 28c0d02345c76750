"""The log of a process: events and access records, as text or JSON, on stdout or in files."""
