"""Which rows the iterations of a run take, and how many iterations that makes; known once the data is open."""

from psgc.config import BatchSettings, Config
from psgc.data import ChunkSource, Epochs
from psgc.errors import UserError


def rows_taken(config: Config, num_rows: int | None) -> int | Epochs | None:
    """The rows that an iteration takes: so many of every chunk, those of its place in an epoch, or None for all.

    num_rows: of the data, None without.
    """
    batch = config.batch
    if not isinstance(batch, BatchSettings):
        return batch
    if num_rows is None:
        raise UserError("batch: epochs need data: {path: ...}")
    return Epochs(num_rows, batch.size, batch.epochs, config.seed, batch.shuffle)


def iterations_of(config: Config, num_rows: int | None) -> int:
    """How many iterations the run has."""
    rows = rows_taken(config, num_rows)
    if isinstance(rows, Epochs):
        return rows.iterations
    assert config.iterations is not None  # a rule of `Config`
    return config.iterations


def rows_in_iteration(config: Config, num_rows: int | None) -> int | None:
    """How many rows the chunks of an iteration are cut from, the last one of an epoch aside; None without data."""
    rows = rows_taken(config, num_rows)
    return rows.rows_in(0) if isinstance(rows, Epochs) else num_rows


def check_rows(config: Config, num_rows: int | None, num_chunks: int) -> None:
    """Raises UserError when there are more chunks than rows in a batch: some chunks would always be empty."""
    rows = rows_in_iteration(config, num_rows)
    if rows is not None and rows < num_chunks:
        raise UserError(
            f"batch.size: {rows} rows cannot be cut into {num_chunks} chunks; "
            "use larger batches, fewer workers or coding.chunks_per_worker"
        )


def check_data(chunks: ChunkSource, rows: int | Epochs | None, iteration: int, chunk: int) -> None:
    """Look at what a gradient was of. Raises UserError when its numbers cannot be used."""
    if not isinstance(rows, Epochs):
        chunks.check(chunk)
    elif (taken := rows.rows(iteration, chunk, chunks.num_chunks)).size:
        chunks.check(chunk, taken)
