"""Some hundred random schedules of faults, and what the driver says of one that goes wrong."""

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
