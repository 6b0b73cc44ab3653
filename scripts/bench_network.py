"""What an iteration takes over links of a given rate: psgc beside Allreduce. One table, every row a real mpirun.

    python scripts/bench_network.py [--dims 100000 1000000 4000000] [--iterations 20] [--out runs/bench/network.md]
        [--situations none link chunks processor 4x2 2x4 memory memory8]
        [--programs mpi4py mpi4py-step gloo combined-1 combined-2 allreduce-1 allreduce-2]

Needs root: every worker, and psgc's server, has a host of its own, made of Linux namespaces (hosts.py), with a link of
200 Mbit/s in each direction to one switch. Compared are Allreduce of mpi4py, all_reduce of gloo where torch is
installed, and psgc with `transfer: combined` through its server and with `aggregation: allreduce`, with 1 and 2 parts.
All add up float32 vectors, with 8 workers; all sums are checked. psgc makes a step with each sum as well, and so does
mpi4py-step. The situations:

    none       nobody slow, nothing to compute
    link       the link of one worker has a fifth of the rate
    chunks     nobody slow; a worker computes for 80 ms, with psgc 8 chunks of 10 ms
    processor  the same, and one worker has a fifth of the processor time
    4x2, 2x4   4 hosts of 2 workers and 2 of 4, the server with the first ones; nobody slow, nothing to compute
    memory     one host, shared memory, 4 workers, dimension 10^7, nothing to compute; memory8: 8 workers

In `chunks` and `processor` each worker has a CPU quota (cpu_quotas.py), which leaves a fifth of this machine to the
server. Messages come out of the quota as well, as on a slow machine.
"""

import argparse
import importlib.util
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benching import publish
from hosts import impossible
from network_runs import MEGABITS, PROGRAMS, SITUATIONS, Measured, measure

from psgc.errors import PsgcError

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
    if wrong := [number for number in (*options.dims, options.iterations or 1) if number < 1]:
        print(f"bench_network: {wrong[0]}: dimensions and iterations are at least 1", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the with blocks clean up
    if reason := impossible():
        print(f"bench_network: needs root: {reason}", file=sys.stderr)
        return 2
    programs = options.programs
    if "gloo" in programs and not _has_torch():
        programs = [name for name in programs if name != "gloo"]
        print("bench_network: torch is not installed: no rows of gloo", file=sys.stderr)
    rows: dict[tuple[Case, str], Measured] = {}
    try:
        for case in cases(options.dims, options.situations):
            for name in programs:
                count = options.iterations or iterations(case)
                rows[case, name] = measure(PROGRAMS[name], SITUATIONS[case.situation], case.dim, count)
                print(line(case, name, rows[case, name]), flush=True)
    except PsgcError as error:
        print(f"bench_network: {name}, {case.situation}, dimension {case.dim}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    publish(report(rows), options.out)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    parser.add_argument("--situations", nargs="+", choices=SITUATIONS, default=list(SITUATIONS))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--iterations", type=int, help="that count; by default fewer the larger the vector")
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


def line(case: Case, name: str, row: Measured) -> str:
    """What is shown of a run as soon as it has ended."""
    links = f", busiest link {row.busiest / 1e6:.2f} MB, mean {row.mean / 1e6:.2f} MB" if row.mean else ""
    what = f"{case.dim:,}, {SITUATIONS[case.situation].text}, {PROGRAMS[name].text}"
    return f"{what}: {1e3 * row.seconds:.1f} ms{links}"


def table(rows: Rows) -> str:
    """Milliseconds as Markdown, a column for each program, each with its ratio to Allreduce where that was measured."""
    cases, programs = (list(dict.fromkeys(key[place] for key in rows)) for place in (0, 1))
    lines = [
        f"| d | workers | {' | '.join(PROGRAMS[name].text for name in programs)} |",
        "|---" * (2 + len(programs)) + "|",
    ]
    for case in cases:
        quiet = case.undisturbed
        reference = min((rows[quiet, name].seconds for name in ALLREDUCE if (quiet, name) in rows), default=None)
        cells = [f"{case.dim:,}", SITUATIONS[case.situation].text]
        for name in programs:
            seconds = rows[case, name].seconds
            cells.append(f"{1e3 * seconds:.0f} ms" + (f" ({seconds / reference:.2f})" if reference else ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def traffic(rows: Rows) -> str:
    """Bytes of the links for the largest vectors with nobody slow, as Markdown; empty where that was not measured."""
    measured = {key: row for key, row in rows.items() if key[0].situation == "none"}
    if not measured:
        return ""
    largest = max(case.dim for case, _ in measured)
    lines = [f"| d = {largest:,}, none slow | busiest link | over the mean link |", "|---|---|---|"]
    for (case, name), row in measured.items():
        if case.dim == largest:
            lines.append(f"| {PROGRAMS[name].text} | {row.busiest / 1e6:.1f} MB | {row.busiest / row.mean:.2f} |")
    return "\n".join(lines)


def report(rows: Rows) -> str:
    """The tables as Markdown, and how to read them."""
    return f"""\
Links of {MEGABITS:g} Mbit/s, float32.

{table(rows)}

{traffic(rows)}

Milliseconds are those of an iteration in the median, without the first; in parentheses over the better of mpi4py and
gloo with nobody slow. The bytes of a link are those in and out of a host per iteration, as the switch counts them, with
those of the launch. The ranks of mpi4py yield while they wait (mpi_yield_when_idle), as they have to where there are
fewer cores than ranks.
"""


if __name__ == "__main__":
    sys.exit(main())
