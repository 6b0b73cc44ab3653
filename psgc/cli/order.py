"""`psgc order assignment.npy`: orders the queues of any assignment matrix, and prints how good the ordering is."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from psgc.cli import Options, Parser, whole
from psgc.errors import UserError
from psgc.library.advice import ordered
from psgc.plan import read_assignment
from psgc.record.files import check_file, write_output, writing
from psgc.terminal import say


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("assignment", metavar="assignment.npy", help="0/1 matrix, chunks x workers (.npy, or CSR in .npz)")
    add("--parts", type=whole, metavar="L", help="number of parts to order for (default: every possible number)")
    add("--output", metavar="FILE", help="write the position of each chunk to FILE (.npy or sparse .npz)")


def run(options: Options) -> int:
    """Print Q_max, bound and gap (see `psgc.coding`) for this l, or for each possible l."""
    path, output = options.assignment, options.output
    assignment = read_assignment(path)
    if output is not None and Path(output).suffix not in (".npy", ".npz"):
        raise UserError(f"--output {output}: name a file that ends in .npy (dense) or .npz (sparse)")
    check_file("--output", output)
    try:
        ordering, rows = ordered(assignment, options.parts)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None

    num_chunks, num_workers = assignment.shape
    replication = np.diff(assignment.indptr)
    load = np.bincount(assignment.indices, minlength=num_workers)
    say(f"{path}: {num_chunks} chunks, {num_workers} workers, {assignment.nnz} copies")
    say(f"replication (workers that hold a chunk)  {_range(replication)}")
    say(f"load (chunks that a worker holds)        {_range(load)}")
    say()
    say(f"{'parts':>5} {'Q_max':>12} {'lower bound':>12} {'gap':>8}")
    for row in rows:
        optimal = "" if row["gap"] else "  optimal"
        say(f"{row['parts']:>5} {row['q_max']:>12} {row['bound']:>12} {row['gap']:>8}{optimal}")
    if output is not None:
        _write(Path(output), ordering)
        say()
        say(f"ordering written to {output}")
    return 0


def _range(counts: Any) -> str:
    least, most = int(counts.min()), int(counts.max())
    return f"{least}" if least == most else f"{least} to {most}, mean {counts.mean():.4g}"


def _write(path: Path, ordering: scipy.sparse.csr_array) -> None:
    def fill(stream: Any) -> None:
        if path.suffix == ".npz":
            scipy.sparse.save_npz(stream, ordering)
        else:
            np.save(stream, ordering.toarray())

    with writing(path):
        write_output(path, fill)
