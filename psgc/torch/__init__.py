"""Training PyTorch models: the same script runs on every rank and steps its own optimizer."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"psgc.torch needs PyTorch ({error}); install it with: pip install 'psgc-mpi[torch]'") from None

from psgc.torch.begin import init
from psgc.torch.run import Run
from psgc.torch.sampling import Batch

__all__ = ["Batch", "Run", "init"]
