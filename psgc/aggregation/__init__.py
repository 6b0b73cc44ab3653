"""The coded all-reduce: how ranks sum their accumulators among themselves, and how each of them makes every step."""
