"""The coded all-reduce: how ranks sum their accumulators among themselves."""
