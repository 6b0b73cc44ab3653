"""Training PyTorch models: the same script runs on every rank and steps its own optimizer."""

try:
    import safetensors as _safetensors  # noqa: F401
    import torch as _torch  # noqa: F401
except ImportError as error:
    need = f"psgc.torch needs PyTorch and safetensors ({error})"
    raise ImportError(f"{need}; install them with: pip install torch 'safetensors>=0.5.3'") from None

from psgc.torch.begin import init
from psgc.torch.run import ScriptRun
from psgc.torch.sampling import Batch
from psgc.torch.streams import StreamBuffer

__all__ = ["Batch", "ScriptRun", "StreamBuffer", "init"]
