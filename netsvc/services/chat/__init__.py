"""Chat rooms for nc, telnet and friends."""
