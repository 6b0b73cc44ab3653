"""Who should do which chunk next: the schedules by their names, pure (no clock, no MPI, no arrays)."""

from collections.abc import Mapping, Sequence

from psgc.errors import UserError
from psgc.server.dynamic_schedule import DynamicSchedule
from psgc.server.fixed_schedules import FixedSchedule, FullSchedule, SkippingSchedule


def make_schedule(
    name: str,
    queues: Mapping[int, Sequence[int]],
    backups: Mapping[int, Sequence[int]] | None = None,
    holders: Sequence[Sequence[int]] = (),
    parts: int = 1,
    costs: Sequence[float] | None = None,
) -> FixedSchedule:
    """The schedule called `name` for workers with these default queues. Raises UserError for an unknown name.

    backups, holders, parts and costs are what `dynamic` needs besides, see `DynamicSchedule`.
    """
    match name:
        case "uncoded" | "random" | "static":
            return FixedSchedule()
        case "full":
            return FullSchedule(queues)
        case "skipping":
            return SkippingSchedule()
        case "dynamic":
            return DynamicSchedule(holders, queues, backups or dict.fromkeys(queues, ()), parts, costs)
    raise UserError(f"schedule: expected uncoded, full, random, static, skipping or dynamic, got {name!r}")
