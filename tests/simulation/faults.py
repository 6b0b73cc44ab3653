"""Many random schedules of slowness, death, return and message delay: `python -m tests.simulation.faults`."""

import argparse
import itertools
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from psgc.config import Coding, Recovery, Verify
from psgc.plan import Plan, make_plan
from tests.simulation.case import Case, Fault, Nap
from tests.simulation.replicated import ReplicatedWorld
from tests.simulation.schedules import SCHEDULES
from tests.simulation.scripts import ScriptWorld
from tests.simulation.terms import History
from tests.simulation.world import World

TIMEOUT = 30.0  # seconds of the simulated world
SERVER_STEPS = ["begin", "after_commit", "sending"]  # of the protocol with aggregation `server`
OPTIONS = {
    "verify": "copies are compared, and some of them are wrong",
    "allreduce": "workers sum their accumulators among themselves",
    "idle": "with --verify: only copies that cost nothing are compared, by digests",
    "scripts": "of users, which make the steps",
    "server": "with --scripts: aggregation `server`",
    "coordinator": "with --scripts: rank 0 dies, and another rank takes over",
    "pieces": "workers do several chunks in one pass",
    "reproducible": "all gradients have the same bits, whatever happens",
    "hosts": "with allreduce or scripts: ranks share the memory of hosts",
}
LATER = 9  # iterations in which it is noticed that scripts differ


@cache
def plan_of(assignment: str, workers: int, chunks: int, replication: int, parts: int, schedule: str) -> Plan:
    coding = Coding(
        assignment=assignment,  # type: ignore[arg-type]
        chunks_per_worker=chunks,
        replication=replication,
        parts=parts,
        coding_matrix="gaussian",
    )
    return make_plan(coding, "static" if schedule == "reordering" else schedule, workers, seed=0)


def random_case(rng: random.Random, verified: bool = False, allreduce: bool = False) -> Case:
    """Up to six workers, of which most of the time enough stay.

    verified: copies are compared; some of them are wrong, or all that one worker makes from some iteration on.
    """
    spare = 1 if verified else 0
    schedule = rng.choice([*(name for name in SCHEDULES if not verified or name != "uncoded"), "dynamic", "skipping"])
    workers = rng.randint(2, 6)
    parts = 1 if verified and allreduce else rng.randint(1, min(3, workers - 1))
    replication = rng.randint(parts + spare, max(parts + spare, min(4, workers)))
    plan = plan_of(rng.choice(["cyclic", "blocks"]), workers, rng.randint(1, 3), replication, parts, schedule)
    ranks = range(1, workers + 1)
    iterations = rng.randint(1, 5)

    moments: list[tuple[int, int]] = []

    def moment() -> tuple[int, int]:
        """Any, or soon after another one: what is still being put right is what breaks."""
        if moments and rng.random() < 0.5:
            first, after = rng.choice(moments)
            moments.append((first, after + rng.randrange(30)))
        else:
            moments.append((rng.randrange(iterations), rng.randrange(150)))
        return moments[-1]

    def nap(worker: int, stubborn: bool) -> Nap:
        first, after = moment()
        return Nap(rng.choice(["deaf", "slow", "mute"]), worker, first, rng.randint(1, 3), after, stubborn)

    naps = [nap(rng.choice(ranks), stubborn=False) for _ in range(rng.choice([0, 0, 1, 2]))]
    faults = []
    for worker in rng.sample(ranks, rng.randint(0, workers - parts if rng.random() < 0.9 else workers)):
        for _ in range(rng.choice([1, 1, 2])):
            kind = rng.choice(["dies", "dies", "cut off", "cut off", "raises", "sleeps"])
            if kind == "sleeps":
                naps.append(nap(worker, stubborn=True))
            else:
                faults.append(Fault(kind, worker, *moment()))
    case = Case(
        plan=plan,
        schedule=schedule,
        combined=rng.random() < 0.6,
        dim=rng.randint(1, 5),
        num_iterations=iterations,
        naps=naps,
        choices=rng.randbytes(997),
        faults=sorted(faults, key=lambda fault: (fault.first, fault.after)),
        reassigning=schedule == "uncoded" or rng.random() < 0.9,
        timeout=TIMEOUT,
        recovery=_random_recovery(rng),
    )
    case = _sharing(rng, case, moment)
    case = replace(case, allreduce=True, combined=True) if allreduce else replace(case, faults=_of_server(rng, case))
    if not verified:
        return case
    if parts > 1:
        case = replace(case, combined=False)
    wrong = [
        (iteration, chunk, worker)
        for iteration in range(iterations)
        for chunk, holders in enumerate(plan.holders())
        if rng.random() < 0.3
        for worker in rng.sample(holders, replication - parts - 1)
    ]
    if rng.random() < 0.3 and (parts == 1 or replication > parts + 1):  # rows of a chunk's roles are independent
        corrupt, since = rng.choice(ranks), rng.randrange(iterations)
        everything = itertools.product(range(since, iterations), range(plan.num_chunks), [corrupt])
        wrong = [*(which for which in wrong if parts == 1 and rng.random() < 0.3), *everything]
    return replace(case, verify=Verify(every=rng.choice([1, 1, 2, 5, 50]), strikes=rng.choice([1, 3, 99])), wrong=wrong)


def with_pieces(rng: random.Random, case: Case) -> Case:
    """The same with one part, exact, and with several chunks in one pass."""
    workers, schedule = case.plan.num_workers, case.schedule
    replication = rng.randint(1, min(4, workers))
    case = replace(
        case,
        plan=plan_of("cyclic", workers, rng.randint(2, 6), replication, 1, schedule),
        num_iterations=case.num_iterations + rng.randint(1, 3),
        recovery=Recovery(),
        fraction=rng.choice([0.5, 0.5, 0.9, 1.0]),
    )
    return replace(case, combined=case.allreduce or rng.random() < 0.5)


def with_tree(rng: random.Random, case: Case) -> Case:
    """The same with one part, exact, and the same bits whatever happens."""
    workers = case.plan.num_workers
    replication = rng.randint(1, min(4, workers))
    plan = plan_of(rng.choice(["cyclic", "blocks"]), workers, rng.randint(1, 6), replication, 1, case.schedule)
    return replace(case, plan=plan, recovery=Recovery(), reproducible=True)


def with_idle(rng: random.Random, case: Case) -> Case:
    """The same with one part, and digests of what is computed; any worker may be in the wrong."""
    plan, workers = case.plan, case.plan.num_workers
    if plan.parts > 1:
        plan = plan_of("cyclic", workers, rng.randint(1, 3), rng.randint(1, min(4, workers)), 1, case.schedule)
    everything = [*itertools.product(range(case.num_iterations), range(plan.num_chunks))]
    wrong = [(*which, rng.randint(1, workers)) for which in everything if rng.random() < 0.3]
    if rng.random() < 0.3:
        corrupt, since = rng.randint(1, workers), rng.randrange(case.num_iterations)
        wrong = [(iteration, chunk, corrupt) for iteration, chunk in everything if iteration >= since]
    if case.scripts:  # their vectors have the loss as well
        wrong = []
    verify = Verify(idle=True, strikes=rng.choice([1, 3, 99]))
    return replace(case, plan=plan, combined=True, verify=verify, wrong=wrong)


def with_hosts(rng: random.Random, case: Case) -> Case:
    """The same with one part, and ranks that share the memory of one to three hosts, on which they are anywhere."""
    plan, workers = case.plan, case.plan.num_workers
    if plan.parts > 1:
        plan = plan_of("cyclic", workers, rng.randint(1, 3), rng.randint(1, min(4, workers)), 1, case.schedule)
    count = rng.choice([1, 2, 3])
    return replace(case, plan=plan, hosts=tuple(rng.randrange(count) for _ in range(workers + 1)))


def _sharing(rng: random.Random, case: Case, moment: Callable[[], tuple[int, int]]) -> Case:
    """The same, but links are slow as well, and ranks fail at steps of the protocol."""
    workers = case.plan.num_workers
    naps = [*case.naps]
    for _ in range(rng.choice([0, 0, 1, 2])):
        first, after = moment()
        kind = rng.choice(["clogged", "late"])
        naps.append(Nap(kind, rng.choice([0, rng.randint(0, workers)]), first, rng.randint(1, 3), after))
    faults = [
        fault if fault.kind == "raises" or rng.random() < 0.4 else _at_step(rng, fault.worker, case.num_iterations)
        for fault in case.faults
    ]
    if len(faults) > 1 and rng.random() < 0.3:  # at the same moment
        faults[1] = replace(faults[0], worker=faults[1].worker)
    return replace(
        case,
        dim=rng.choice([case.dim, rng.randint(1, 30)]),
        naps=naps,
        faults=sorted(faults, key=lambda fault: (fault.first, fault.after)),
        pace=rng.choice([0.1, 0.03, 0.01]),
        unheard=rng.choice([4, 32]),
    )


def script_case(rng: random.Random) -> Case:
    """With aggregation `allreduce`, and a script on each rank."""
    case = _with_scripts(rng)
    return replace(case, waiting=rng.choice([0, 0, 0, 1000]))


def _with_scripts(rng: random.Random) -> Case:
    case = random_case(rng, allreduce=True)
    workers, iterations = case.plan.num_workers, rng.randint(2, 8)
    ranks = range(1, workers + 1)
    away = rng.choice([0, 1, 1, 2, 3])  # how many scripts are slow to make their next call
    naps = [
        Nap("away", rng.randint(0, workers), rng.randrange(iterations), rng.randint(1, 5), rng.randrange(60))
        for _ in range(away)
    ]
    wrong = []
    if rng.random() < 0.3:
        wrong.append(
            Fault(rng.choice(["ends", "ends", "raises there"]), rng.choice(ranks), rng.randint(0, iterations + 2), 0)
        )
    if rng.random() < 0.2:
        wrong.append(Fault("differs", rng.choice(ranks), rng.randrange(1, iterations), 0))
        iterations += LATER
    if rng.random() < 0.05:
        wrong.append(Fault("another", rng.choice(ranks), rng.randrange(iterations), 0))
    return replace(
        case,
        dim=3 + case.dim,
        num_iterations=iterations,
        naps=[*case.naps, *naps],
        faults=[*case.faults, *wrong],
        recovery=Recovery(),
        scripts=True,
        partial=[iteration for iteration in range(iterations) if rng.random() < 0.1],
    )


def server_case(rng: random.Random) -> Case:
    """As `script_case`, with aggregation `server`."""
    case = _with_scripts(rng)
    faults = _of_server(rng, case)
    iterations, naps = case.num_iterations, [*case.naps]
    if rng.random() < 0.5:  # more sums come than wait for a rank
        iterations += rng.randint(4, 12)
        for _ in range(rng.randint(1, 3)):
            kind = rng.choice(["away", "away", "clogged", "deaf"])
            worker, first = rng.randint(1, case.plan.num_workers), rng.randrange(iterations)
            naps.append(Nap(kind, worker, first, rng.randint(3, 9), rng.randrange(30)))
    return replace(
        case,
        allreduce=False,
        combined=rng.random() < 0.6,
        naps=naps,
        faults=faults,
        num_iterations=iterations,
        partial=[iteration for iteration in range(iterations) if rng.random() < 0.1],
    )


def _of_server(rng: random.Random, case: Case) -> list[Fault]:
    """Its faults, at steps of the protocol that workers come to with aggregation `server`."""
    return [
        replace(fault, step=rng.choice(SERVER_STEPS)) if fault.step and fault.step not in SERVER_STEPS else fault
        for fault in case.faults
    ]


def _at_step(rng: random.Random, worker: int, iterations: int) -> Fault:
    kind = rng.choice(["dies", "dies", "cut off", "stops"])
    step = rng.choice(["begin", "after_commit", "sending", "summing", "passing_on", "passing_on", "passed_on"])
    return Fault(kind, worker, rng.randrange(iterations), rng.choice([0, 0, 1, 2, 5]), step)


def _random_recovery(rng: random.Random) -> Recovery:
    """Exact, most of the time."""
    if rng.random() < 0.7:
        return Recovery()
    deadline = rng.choice([None, "auto", rng.uniform(0.1, 30.0)])
    max_error = rng.choice([0.0, 0.3, rng.random()]) if deadline else rng.random()
    return Recovery(mode="approximate", deadline=deadline, max_error=max_error)


CHANGES = (("pieces", with_pieces), ("reproducible", with_tree), ("hosts", with_hosts), ("idle", with_idle))


def run(seed: int, thorough: bool = False, **options: bool) -> Counter[str]:
    """One schedule of faults; what happened in it. options: those of OPTIONS. Raises what goes wrong."""
    rng = random.Random(seed)
    world: World
    what = dict.fromkeys(OPTIONS, False) | options
    if what["scripts"]:
        case = server_case(rng) if what["server"] else script_case(rng)
    else:
        case = random_case(rng, what["verify"], what["allreduce"])
    for kind, change in CHANGES:
        case = change(rng, case) if what[kind] else case
    if what["coordinator"]:
        return History(case, rng).run()
    world = ScriptWorld(case) if what["scripts"] else ReplicatedWorld(case, thorough)
    world.run()
    return world.counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.faults", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the others follow")
    for name, text in OPTIONS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    options = parser.parse_args(arguments)
    if (options.server or options.coordinator) and not options.scripts:
        parser.error("--server and --coordinator need --scripts")
    kinds = {name: getattr(options, name) for name in OPTIONS}
    counts: Counter[str] = Counter()
    began = time.monotonic()
    for seed in range(options.seed, options.seed + options.schedules):
        try:
            counts += run(seed, **kinds)
        except Exception:
            traceback.print_exc()
            same = "".join(f" --{kind}" for kind, is_so in kinds.items() if is_so)
            print(f"failed: python -m tests.simulation.faults --schedules 1 --seed {seed}{same}", file=sys.stderr)
            return 1
    print(f"{options.schedules} schedules in {time.monotonic() - began:.0f} s")
    for what, count in sorted(counts.items()):
        print(f"{count:8} {what}")
    print("every gradient was what it had to be, the sum over all chunks if exact, and every iteration ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
