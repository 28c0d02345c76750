"""The log of a process: events and access records, as text or JSON, in files that are reopened and may be full."""
