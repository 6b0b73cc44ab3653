"""Some hundred random schedules of faults, and what the driver says of one that goes wrong."""

import pytest

from psgc.server.coordinator import Coordinator
from psgc.server.decoder import Decoder
from psgc.server.instructions import Finish
from tests.simulation import faults


def test_several_hundred_schedules_of_faults(capsys):
    assert faults.main(["--schedules", "200", "--seed", "100000"]) == 0
    counts = {
        what: int(count) for count, what in (line.split(None, 1) for line in capsys.readouterr().out.splitlines()[1:-1])
    }
    assert counts.keys() == {
        "reassigned", "approximate", "deaths", "iterations", "lost", "invalidated", "returns",
        "stopped with too few workers",
    }  # fmt: skip
    assert min(counts.values()) > 10


def test_the_same_seed_is_the_same_schedule():
    assert faults.run(3) == faults.run(3)


@pytest.mark.parametrize("wrong", ["hang", "sum"])
def test_a_schedule_that_goes_wrong_is_named(monkeypatch, capsys, wrong):
    if wrong == "hang":
        handle = Coordinator.handle
        monkeypatch.setattr(Coordinator, "handle", lambda it, event: [i for i in handle(it, event) if i != Finish()])
    else:
        monkeypatch.setattr(Decoder, "gradient", property(lambda self: 1.5 * self._sum))
    assert faults.main(["--schedules", "20", "--seed", "5"]) == 1
    error = capsys.readouterr().err
    assert ("nothing happens any more" if wrong == "hang" else "Not equal to tolerance") in error
    assert error.splitlines()[-1] == "failed: python -m tests.simulation.faults --schedules 1 --seed 5"
