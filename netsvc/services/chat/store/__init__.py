"""What the chat remembers, and where: the interface of a store, and the stores."""
