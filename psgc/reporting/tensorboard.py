"""The course of a run as scalars that TensorBoard reads.

Importing this needs TensorBoard (the extra `tensorboard`), and raises UserError where it is missing.
"""

from pathlib import Path
from typing import IO

import numpy as np

from psgc.errors import UserError
from psgc.reporting.files import writing
from psgc.reporting.run_directory import RecordedRun
from psgc.run_rows import HELD_OUT
from psgc.writing import make_directory, write_whole

try:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError:
    raise UserError("--tensorboard needs TensorBoard: pip install tensorboard") from None

SCALARS = ("loss", "seconds", "efficiency", "error_measure", "lost", "redundant", *HELD_OUT)


def write_events(run: RecordedRun, directory: Path) -> None:
    """Replace the event file in `directory` by one with `SCALARS` by iteration. Raises UserError.

    Values that are nan are left out. The times start when the settings of the run were written.
    """
    began = (run.path / "config.yaml").stat().st_mtime
    times = (began + np.cumsum(run.iterations["seconds"])).tolist()

    def fill(stream: IO[bytes]) -> None:
        writer = RecordWriter(stream)
        writer.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
        for row, iteration in enumerate(run.iterations["iteration"].tolist()):
            values = {name: float(run.iterations[name][row]) for name in SCALARS if name in run.iterations}
            known = [Summary.Value(tag=name, simple_value=x) for name, x in values.items() if np.isfinite(x)]
            event = Event(wall_time=times[row], step=iteration, summary=Summary(value=known))
            writer.write(event.SerializeToString())

    with writing(directory):
        make_directory(directory)
        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        write_whole(directory / f"events.out.tfevents.{int(began):010d}.psgc", fill)
