"""What may happen to whom in a simulated world."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import inf

from psgc.config import Recovery, Verify
from psgc.messages import UNHEARD
from psgc.plan import Plan


@dataclass(frozen=True)
class Nap:
    """A worker is deaf, slow or mute from step `after` of iteration `first` on, for `length` iterations.

    With aggregation `allreduce` a rank may also be "clogged" or "late": blocks to it or from it are. A script may be
    "away": it makes no call. `worker` is 0 then for rank 0.

    stubborn: even when nothing else can happen; then it may be given up, and be back when it wakes up.
    """

    kind: str
    worker: int
    first: int
    length: int
    after: int = 0
    stubborn: bool = False


@dataclass(frozen=True)
class Fault:
    """From step `after` of iteration `first` on, once: the process of a worker "dies", MPI says that it is "cut off"
    (which is not so), or a gradient of it "raises", or it "stops" until others can do nothing without it. Its script
    "ends" in place of its call for iteration `first`, or it "raises there"; it makes "another call" than the others,
    or it "differs" from them from that call on.

    step: a `psgc.iteration.Moment`; then it happens when the worker is there for the `after`-th time, from
    iteration `first` on.
    """

    kind: str
    worker: int
    first: int
    after: int
    step: str = ""


@dataclass(frozen=True)
class Case:
    """What happens to whom. choices: at every step, one of all that can happen; timeout: faults.collect_timeout.

    allreduce: workers sum their accumulators among themselves; pace: how fast time passes between events; unheard: how
    many messages a worker is sent without being heard, with `allreduce`; hosts: by rank whose memory it shares, as in
    `Shared`.

    scripts: the steps are made by scripts (`tests.simulation.scripts`); partial: iterations before which these are in
    the middle of something, as in the accumulation of gradients; waiting: bytes of sums that may wait for each of them.

    fraction: of what a worker has left that it does in one pass, if that may be; 0: one chunk at a time.

    reproducible: as in a `Config`; then gradients are numbers of which the order of a sum shows.
    """

    plan: Plan
    schedule: str
    combined: bool
    dim: int
    num_iterations: int
    naps: Sequence[Nap]
    choices: bytes
    faults: Sequence[Fault] = ()
    reassigning: bool = True
    timeout: float = inf
    recovery: Recovery = field(default_factory=Recovery)  # exact
    verify: Verify | None = None
    wrong: Collection[tuple[int, int, int]] = ()  # (iteration, chunk, worker) of copies that are
    allreduce: bool = False
    pace: float = 1.0
    unheard: int = UNHEARD
    hosts: tuple[int, ...] = ()
    scripts: bool = False
    partial: Collection[int] = ()
    waiting: int = 0
    fraction: float = 0.0
    reproducible: bool = False
