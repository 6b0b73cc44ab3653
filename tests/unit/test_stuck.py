"""What is said of gradients that do not return: one line for all that are in the same place."""

from psgc.server.failure_detector import GATHERING, NAMED, Stuck


def test_many_workers_are_counted_and_each_place_has_a_line():
    stuck = Stuck()
    for worker in range(1, NAMED + 4):
        stuck.told(worker, 10 * worker, 60.0 + worker, "", 5.0)
    stuck.told(99, 0, 30.0, "model.py:7: x = f()", 5.5)
    first, second = stuck.due(5.0 + GATHERING)
    named = ", ".join(f"worker {worker} in chunk {10 * worker}" for worker in range(1, NAMED + 1))
    assert first == f"for 61 s gradients have not returned: {named} and 3 more workers"
    assert second == "for 30 s gradients have not returned: worker 99 in chunk 0; in model.py:7: x = f()"
    assert stuck.due(1e9) == []
    for worker in range(1, NAMED + 1):
        stuck.told(worker, 0, 60.0, "", 70.0)
    assert not stuck.due(70.0 + GATHERING)[0].endswith("workers")
