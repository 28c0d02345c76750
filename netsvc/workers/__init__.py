"""Several processes that serve the same ports."""
