"""How much memory the ranks of a run need, and whether a host has it. Neither data nor program are counted.

`python -m psgc.run.memory run.yaml SETTING ...` is the process in which a model is built before its run, to know its
number of parameters. There it may print, crash, hang or start MPI without harm.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence

from psgc.aggregation import memory
from psgc.aggregation.memory import Combined, Held, PerChunk
from psgc.backend import part_length
from psgc.config import AssignmentFile, Config, load
from psgc.errors import UserError
from psgc.machine import available_memory
from psgc.processes import die_with_parent
from psgc.run.auto import vector_bytes, without_auto
from psgc.vectors import receive_length, tail_length

MARK = b"psgc-dimension "  # the answer, among what a model prints
LIMIT = 20.0  # seconds


def held(config: Config, num_chunks: int, num_workers: int, dim: int) -> tuple[list[Held], list[Held]]:
    """What the first process and what another one holds. config: without `auto` in transfer and aggregation."""
    vector, optimizer = vector_bytes(config, dim), config.optimizer.kind
    length = part_length(dim, config.coding.parts)
    coded = vector_bytes(config, length)
    nodes = None
    if config.reproducible:  # two neighbours of one worker are one node
        nodes = max(1, min(_load(config, num_chunks, num_workers), -(-num_chunks // 2))), max(1, num_chunks)
    transfer: Combined | PerChunk = Combined(config.aggregation == "allreduce", nodes)
    if config.transfer != "combined":
        tail = tail_length(config.transfer, num_chunks, config.dtype)
        received = vector_bytes(config, receive_length(length + tail, config.dtype))
        is_unbiased = config.recovery.estimator == "unbiased"
        transfer = PerChunk(received, num_chunks, decoded=1 + is_unbiased)  # beside the sum without weights
    rank_0, worker = memory.of_ranks(
        *(vector, coded, config.coding.parts, optimizer, _waiting(config, num_chunks, num_workers)),
        checkpoints=config.checkpoint.every > 0,
        num_workers=num_workers,
        transfer=transfer,
    )
    return rank_0 if config.dedicated_server else memory.of_both(rank_0, worker), worker


def _waiting(config: Config, num_chunks: int, num_workers: int) -> int:
    """How many gradients wait on a worker; one that needs no other copies counts before the next one is there."""
    alone = config.coding.parts == 1 and not config.verify_every
    if alone or config.transfer != "combined":
        return 1
    return _load(config, num_chunks, num_workers)


def _load(config: Config, num_chunks: int, num_workers: int) -> int:
    if isinstance(config.coding.assignment, AssignmentFile):
        return num_chunks
    return max(1, min(num_chunks, -(-num_chunks * config.coding.replication // num_workers)))


def expected_memory(config: Config, config_path: str, overrides: Sequence[str], num_workers: int) -> str:
    """What each rank of a new run will hold at most, as text; "" where that cannot be known before the run.

    config_path, overrides: the source of `config`.
    """
    coding = config.coding
    if isinstance(coding.chunks_per_worker, str) or isinstance(coding.assignment, AssignmentFile):
        return ""  # the run finds out how many chunks there are
    dim = dimension(config_path, overrides)
    if dim is None:
        return ""
    num_chunks = coding.chunks_per_worker * num_workers
    try:
        config = without_auto(config, num_workers, dim)
    except UserError:  # the run will say so
        return ""
    return memory_line(config, num_chunks, num_workers, dim)


def memory_line(config: Config, num_chunks: int, num_workers: int, dim: int) -> str:
    """What the ranks hold at most, as text. Arguments as for `held`."""
    rank_0, worker = held(config, num_chunks, num_workers, dim)
    figures = f"memory of rank 0: {memory.described(rank_0)}; of another rank: {memory.described(worker)}"
    return f"{figures}; besides data and program"


def check_memory(config: Config, num_workers: int, dim: int, others_here: int, server_here: bool) -> None:
    """Raises UserError when the processes on this host cannot hold what no iteration ends without.

    others_here: how many there are besides the first one of the run. config: as in `held`.
    The figures are low: what is refused could not have worked.
    """
    rank_0, worker = (memory.least(items) for items in held(config, 0, num_workers, dim))
    needed = others_here * worker + server_here * rank_0
    available = available_memory()
    if available is None or needed <= available:
        return
    each = memory.shown(max(rank_0 if server_here else 0, worker if others_here else 0))
    ranks = others_here + server_here
    raise UserError(
        f"problem: a dimension of {dim} ({config.dtype}) does not fit into the memory of this host: up to {each} for "
        f"each of its {ranks} ranks, {memory.shown(needed)} in all, but there are {memory.shown(available)}; "
        "start fewer ranks on each host" + (", or use dtype: float32" if config.dtype == "float64" else "")
    )


def dimension(config_path: str, overrides: Sequence[str], seconds: float = LIMIT) -> int | None:
    """The number of parameters; None: the problem cannot be built, or not in so many seconds."""
    command = [sys.executable, "-P", "-m", "psgc.run.memory", config_path, *overrides]
    with tempfile.TemporaryFile() as out:  # nobody has to read it, unlike a pipe, which children of the model may hold
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                preexec_fn=die_with_parent,
            ).returncode
        except (OSError, subprocess.TimeoutExpired):
            return None
        out.seek(0)
        answers = [line.removeprefix(MARK) for line in out.read().splitlines() if line.startswith(MARK)]
    return int(answers[-1]) if answers and code == 0 else None


def _main(config_path: str, *overrides: str) -> None:
    from psgc.run.inputs import open_problem  # with SciPy, which the process that asks does not need

    dim = int(open_problem(load(config_path, overrides), config_path)[1].dim)
    sys.stdout.write(f"\n{MARK.decode()}{dim}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
