"""Training PyTorch models: the same script runs on every rank and steps its own optimizer."""
