"""The schedules by name: which worker does which chunk next.

To add one, write a subclass of `Schedule` in a file of this package and give it a line in `SCHEDULES`.
"""

from psgc.schedules.dynamic import DynamicSchedule
from psgc.schedules.fixed import FullSchedule, RandomSchedule, SkippingSchedule, StaticSchedule, UncodedSchedule
from psgc.schedules.schedule import Queues, Schedule

SCHEDULES: dict[str, type[Schedule]] = {
    "uncoded": UncodedSchedule,
    "full": FullSchedule,
    "random": RandomSchedule,
    "static": StaticSchedule,
    "skipping": SkippingSchedule,
    "dynamic": DynamicSchedule,
}

__all__ = ["SCHEDULES", "Queues", "Schedule"]
