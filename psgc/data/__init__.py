"""Training data: files opened as memory maps, or arrays, and cut into chunks."""

from psgc.data.chunks import OF_SEVERAL, Chunk, ChunkSource
from psgc.data.dataset import Dataset, from_arrays, open_data
from psgc.data.epochs import Epochs
from psgc.data.npz import write_dense, write_sparse

__all__ = [
    "OF_SEVERAL", "Chunk", "ChunkSource", "Dataset", "Epochs", "from_arrays", "open_data", "write_dense",
    "write_sparse",
]  # fmt: skip
