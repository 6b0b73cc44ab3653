"""psgc: exact synchronous gradient descent over MPI that never waits for its slowest machine."""

__version__ = "0.1.0"
