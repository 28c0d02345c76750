"""What runs a plan: starts, reloads, drains and stops it."""
