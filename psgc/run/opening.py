"""The first lines of a run, which rank 0 prints: what the run lacks, if anything, and what it is."""

import os

from psgc import __version__
from psgc.config import Config
from psgc.machine import THREADS, carried
from psgc.plan import Plan
from psgc.run.launched import NOBODY_RESTORES, is_launched
from psgc.transport import Transport


def opening_lines(
    transport: Transport, config: Config, plan: Plan, computes: str, go_on: str, chosen: str = ""
) -> list[str]:
    """What to print at the start.

    computes: the number of parameters and what computes, as in "10 parameters, numpy float64"
    go_on: the command that resumes the run, or ""
    chosen: text about the number of chunks that `auto` chose, or ""
    """
    lacks = [] if is_launched() else ["started without psgc launch: exit codes are mpirun's"]
    if config.faults.restore and not is_launched():
        lacks.append(NOBODY_RESTORES)
    if not transport.survives_deaths:  # print how to resume now: after a death MPICH leaves rank 0 no time for it
        resume_it = f"; resume it with: {go_on}" if go_on and config.checkpoint.every else ""
        lacks.append(f"no fault tolerance: a dead rank ends this run{resume_it}")
    assignment = config.coding.assignment
    name = assignment if isinstance(assignment, str) else assignment.path
    hosts, workers = len(set(transport.hosts)), plan.num_workers
    every = f"verify every {config.verify_every}, " if config.verify_every else ""
    verify = "verify idle, " if config.verify_idle else every
    threads = f"reproducible with {os.environ.get(THREADS[0], 'all')} threads of BLAS, " if config.reproducible else ""
    what = (
        f"psgc {__version__}: {workers} worker{'s' if workers > 1 else ''} on {hosts} host{'s' if hosts > 1 else ''}, "
        f"{plan.num_chunks} chunks{chosen} in {plan.assignment.nnz} copies ({name}), parts {plan.parts}, "
        f"schedule {config.schedule}, aggregation {config.aggregation}, transfer {config.transfer}, {verify}{threads}"
        f"{computes}, {transport.library}{carried(hosts)}"
    )
    return ["; ".join(lacks), what] if lacks else [what]
