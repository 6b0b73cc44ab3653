"""What an iteration takes over links of a given rate: psgc beside Allreduce. One table, every row a real mpirun.

    python scripts/bench_network.py [--dims 100000 1000000 4000000] [--situations none link chunks processor memory]
        [--iterations 20] [--out runs/bench/network.md]

Needs root: every worker, and psgc's server, has a host of its own, made of Linux namespaces (hosts.py), with a link of
200 Mbit/s in each direction to one switch. Compared are Allreduce of mpi4py, all_reduce of gloo where torch is
installed, and psgc. All add up float32 vectors, with 8 workers; all sums are checked. The situations:

    none       nobody slow, nothing to compute
    link       the link of one worker has a fifth of the rate
    chunks     nobody slow; a worker computes for 80 ms, with psgc 8 chunks of 10 ms
    processor  the same, and one worker has a fifth of the processor time
    memory     one host, shared memory, 4 workers, dimension 10^7, nothing to compute

In `chunks` and `processor` each worker has a CPU quota (cpu_quotas.py), which leaves a fifth of this machine to the
server. Messages come out of the quota as well, as on a slow machine.
"""

import argparse
import importlib.util
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benching import machine
from hosts import impossible
from network_runs import MEGABITS, PROGRAMS, SITUATIONS, Measured, measure

from psgc.errors import PsgcError
from psgc.reporting.files import write_output_text

MEMORY_DIM = 10_000_000
ALLREDUCE = tuple(name for name, program in PROGRAMS.items() if program.library)


@dataclass(frozen=True)
class Case:
    """A line of the table but for the program. situation: a key of SITUATIONS."""

    dim: int
    situation: str

    @property
    def undisturbed(self) -> "Case":
        """The same with nobody slow."""
        return Case(self.dim, SITUATIONS[self.situation].undisturbed)


Rows = Mapping[tuple[Case, str], Measured]


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the with blocks clean up
    if reason := impossible():
        print(f"bench_network: needs root: {reason}", file=sys.stderr)
        return 2
    programs = {name: program for name, program in PROGRAMS.items() if program.library != "gloo" or _has_torch()}
    if len(programs) < len(PROGRAMS):
        print("bench_network: torch is not installed: no rows of gloo", file=sys.stderr)
    rows: dict[tuple[Case, str], Measured] = {}
    try:
        for case in cases(options.dims, options.situations):
            for name, program in programs.items():
                count = options.iterations or iterations(case)
                rows[case, name] = measure(program, SITUATIONS[case.situation], case.dim, count)
                print(table(rows).splitlines()[-1], flush=True)
    except PsgcError as error:
        print(f"bench_network: {name}, {case.situation}, dimension {case.dim}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    text = report(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_output_text(options.out, text)
    print(f"\n{text}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    parser.add_argument("--situations", nargs="+", choices=SITUATIONS, default=list(SITUATIONS))
    parser.add_argument("--iterations", type=int, default=0, help="that count; by default fewer the larger the vector")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/network.md"), help="where the table goes")
    return parser.parse_args()


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def cases(dims: Sequence[int], situations: Sequence[str]) -> list[Case]:
    """In the order of the table. One host has a dimension of its own, since its vectors cross no link."""
    linked = [name for name in situations if not SITUATIONS[name].one_host]
    alone = [name for name in situations if SITUATIONS[name].one_host]
    return [Case(dim, name) for dim in dims for name in linked] + [Case(MEMORY_DIM, name) for name in alone]


def iterations(case: Case) -> int:
    """How many are measured: seconds of each run, not minutes."""
    if SITUATIONS[case.situation].one_host:
        return 20
    return max(3, min(20, 6_000_000 // case.dim))


def table(rows: Rows) -> str:
    """The rows as Markdown, each beside Allreduce and beside itself with nobody slow, where those were measured."""
    lines = [
        "| d | workers | program | per iteration | to Allreduce | to none slow | busiest link | to the mean link |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (case, name), row in rows.items():
        references = [rows[case.undisturbed, other].seconds for other in ALLREDUCE if (case.undisturbed, other) in rows]
        itself = rows.get((case.undisturbed, name))
        cells = [f"{case.dim:,}", SITUATIONS[case.situation].text, name, f"{1e3 * row.seconds:.1f} ms"]
        cells += [f"{row.seconds / min(references):.2f}" if references else ""]
        cells += [f"{row.seconds / itself.seconds:.2f}" if itself else ""]
        cells += [f"{row.busiest / 1e6:.2f} MB", f"{row.busiest / row.mean:.2f}"] if row.mean else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(rows: Rows) -> str:
    """The whole Markdown text: what ran where, the table, how to read it."""
    return f"""\
Links of {MEGABITS:g} Mbit/s, float32; {machine()}:

    {shlex.join(["python", *sys.argv])}

{table(rows)}

*Per iteration* is the median, without the first. *To Allreduce*: over the better of mpi4py and gloo with nobody slow.
*To none slow*: over the same program with nobody slow. *Busiest link*: bytes in and out of a host per iteration, as the
switch counts them, with those of the launch. The ranks of mpi4py yield while they wait (mpi_yield_when_idle), as they
have to where there are fewer cores than ranks.
"""


if __name__ == "__main__":
    sys.exit(main())
