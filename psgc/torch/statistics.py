"""Running statistics of batch normalisation, as a sum over chunks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

COUNTS = 2  # entries of each module before its statistics: chunks, and the sum of their weights


class RunningStatistics:
    """Computes the contribution of a chunk to running means and variances, and updates them from the sum over chunks.

    Each micro-batch is normalised by its own statistics. The mean of these over the micro-batches of chunk i are the
    chunk's statistics s_i. An iteration updates the running statistics r once per chunk, in the order of chunks, with
    the module's momentum a:

        r <- (1 - a) r + a s_i,  i = 0 .. N - 1,  which is  r <- (1 - W) r + sum_i w_i s_i,

    with w_i = a (1 - a)^(N - 1 - i) and W = sum_i w_i. So a chunk contributes w_i and w_i s_i, and the order of the sum
    does not matter. A chunk without rows contributes nothing. With momentum=None r is the mean over all chunks so far:
    w_i = 1, and r and the sum are divided by the number of chunks.

    num_chunks: N
    size: number of entries of a contribution; for each module: chunks, W, w s (means), w s (variances)
    """

    def __init__(self, model: nn.Module, num_chunks: int) -> None:
        self._num_chunks = num_chunks
        norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
        self._modules = [module for module in norms if module.running_mean is not None]
        self.size = sum(COUNTS + 2 * module.num_features for module in self._modules)

    @contextmanager
    def of_chunk(self, chunk: int, contribution: Tensor) -> Iterator[None]:
        """A block for the forward passes of a chunk. At its end `contribution` (size,) gets the chunk's contribution.

        The model's running statistics do not change. Modules in evaluation mode contribute nothing.
        """
        momenta = {module: module.momentum for module in self._modules if module.training}
        saved = {module: [buffer.clone() for buffer in _buffers(module)] for module in momenta}
        for module in momenta:
            module.momentum = None  # so that the module computes the mean over its forward passes
            for buffer in _buffers(module):
                buffer.zero_()
        try:
            yield
            for module, entries in self._entries(contribution):
                if module in momenta:
                    self._write(entries, module, chunk, momenta[module])
        finally:
            for module, momentum in momenta.items():
                module.momentum = momentum
                for buffer, before in zip(_buffers(module), saved[module], strict=True):
                    buffer.copy_(before)

    def update(self, total: Tensor) -> None:
        """Update the running statistics of the model. total: (size,), the sum of the contributions of all chunks."""
        for module, entries in self._entries(total):
            chunks, weight = float(entries[0]), float(entries[1])
            if chunks == 0:
                continue
            mean, var, tracked = _buffers(module)
            kept, added = 1 - weight, 1.0
            if module.momentum is None:
                before = int(tracked)
                kept, added = before / (before + weight), 1 / (before + weight)
            for buffer, sums in zip((mean, var), entries[COUNTS:].view(2, -1), strict=True):
                buffer.mul_(kept).add_(sums.to(buffer), alpha=added)
            tracked += round(chunks)

    def _write(self, entries: Tensor, module: _BatchNorm, chunk: int, momentum: float | None) -> None:
        mean, var, tracked = _buffers(module)
        if int(tracked) == 0:  # this module was not called
            return
        weight = 1.0 if momentum is None else momentum * (1 - momentum) ** (self._num_chunks - 1 - chunk)
        entries[0], entries[1] = 1.0, weight
        torch.mul(torch.cat((mean, var)).to(entries), weight, out=entries[COUNTS:])

    def _entries(self, contribution: Tensor) -> Iterator[tuple[_BatchNorm, Tensor]]:
        start = 0
        for module in self._modules:
            size = COUNTS + 2 * module.num_features
            yield module, contribution[start : start + size]
            start += size


def _buffers(module: _BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    mean, var, tracked = module.running_mean, module.running_var, module.num_batches_tracked
    assert mean is not None
    assert var is not None
    assert tracked is not None
    return mean, var, tracked
