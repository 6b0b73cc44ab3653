"""Settings of every test."""

import os
import sys

from hypothesis import settings

# On a busy machine any example may take long: pytest's timeout holds. The examples are the same ones each time;
# `pytest --hypothesis-profile random` looks for others.
settings.register_profile("psgc", deadline=None, derandomize=True, database=None)
settings.register_profile("random", deadline=None)
settings.load_profile("psgc")

# Tests run side by side, and threads on all cores that wait for each other take many times as long. NumPy's BLAS reads
# its variable once; nothing that tests start shall see it.
_blas = os.environ.get("OPENBLAS_NUM_THREADS")
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy  # noqa: E402, F401

if _blas is None:
    del os.environ["OPENBLAS_NUM_THREADS"]


def pytest_collection_finish() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
