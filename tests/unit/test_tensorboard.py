"""Event files, read back by TensorBoard itself."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tensorboard", reason="no TensorBoard: pip install tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from psgc.errors import UserError
from psgc.reporting.report import SCALARS, report, write_events
from psgc.reporting.run_directory import read_run
from tests.unit.recorded_runs import record


def read_back(directory):
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}


def test_tensorboard_reads_what_was_recorded(tmp_path):
    def loss(iteration):
        return float("nan") if iteration == 2 else 1.0 / (1 + iteration)

    run = read_run(
        record(
            tmp_path / "run",
            3,
            2,
            5,
            lost={2: 1},
            loss=loss,
            held_out=lambda i: {"test_loss": 0.5, "test_accuracy": 0.75} if i == 2 else {},
        )
    )
    for _ in range(2):  # a report that is made again takes the place of the one before
        write_events(run, tmp_path / "events")
    found = read_back(tmp_path / "events")
    assert set(found) == set(SCALARS)
    for name in SCALARS:
        column = run.iterations[name]
        known = np.isfinite(column)
        assert [event.step for event in found[name]] == np.flatnonzero(known).tolist()
        assert [event.value for event in found[name]] == pytest.approx(column[known].tolist(), rel=1e-6)
    times = [event.wall_time for event in found["seconds"]]
    assert np.diff(times) == pytest.approx(run.iterations["seconds"][1:], abs=1e-5)
    assert len(list((tmp_path / "events").iterdir())) == 1


def test_a_problem_without_a_loss_has_no_scalars_of_it(tmp_path):
    write_events(read_run(record(tmp_path / "run", 3, 2, 5, loss=lambda _: None)), tmp_path / "events")
    assert set(read_back(tmp_path / "events")) == set(SCALARS) - {"loss", "test_loss", "test_accuracy"}


def test_the_command_says_where_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("psgc.reporting.report.pictures", lambda run, iteration: [])  # they take their time
    record(tmp_path / "run", 3, 2, 5)
    assert report(str(tmp_path / "run"), tensorboard=True) == 0
    place = tmp_path / "run/report/tensorboard"
    assert capsys.readouterr().out.splitlines()[1] == (
        f"scalars written to {place}; see them with: tensorboard --logdir {place}"
    )
    assert set(read_back(place)) == set(SCALARS) - {"test_loss", "test_accuracy"}


def test_what_cannot_be_written_is_one_line(tmp_path):
    run = read_run(record(tmp_path / "run", 3, 2, 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written: "):
        write_events(run, tmp_path / "file")
