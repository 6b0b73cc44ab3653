"""Random schedules of faults with scripts that make the steps: slow, wrong, ended early or late, behind."""

import pytest

from psgc.server.digests import Digests
from psgc.torch.serving import ScriptDriver
from psgc.workers.state import WorkerState
from tests.simulation import faults


@pytest.mark.parametrize("hosts", [[], ["--hosts"]])
def test_every_script_has_the_right_sums_or_a_right_state_in_between(capsys, hosts):
    assert faults.main(["--scripts", "--schedules", "25", "--seed", "100000", *hosts]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    counts = {what: int(count) for count, what in (line.split(None, 1) for line in lines)}
    assert counts.keys() >= {
        "states loaded", "left out", "lost", "returns", "deaths", "differs", "differs from the beginning",
        "another call", "workers at the end", "stopped with too few workers",
    }  # fmt: skip


def test_with_aggregation_server_as_well(capsys):
    assert faults.main(["--scripts", "--server", "--schedules", "20", "--seed", "2100"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    counts = {what: int(count) for count, what in (line.split(None, 1) for line in lines)}
    assert counts.keys() >= {
        "left out", "states loaded", "lost", "returns", "deaths", "differs", "workers at the end",
        "stopped with too few workers",
    }  # fmt: skip


DEFECTS = [
    (WorkerState, "closed", lambda *_: None, "reported although nobody wants it"),
    (ScriptDriver, "due", lambda _: [], "nothing happens any more"),
    (Digests, "wrong", lambda *_: [], "and nobody notices"),
]


@pytest.mark.parametrize(("where", "name", "wrong", "found"), DEFECTS)
def test_a_defect_is_found(monkeypatch, capsys, where, name, wrong, found):
    monkeypatch.setattr(where, name, wrong)
    assert faults.main(["--scripts", "--schedules", "60", "--seed", "240"]) == 1
    assert found in capsys.readouterr().err


def test_a_worker_that_ends_an_old_pass_while_the_others_sum_can_do_what_is_lost_then():
    assert faults.run(990507, scripts=True, server=True)["invalidated"] == 1


def test_a_state_that_rank_0_had_no_time_to_give_before_such_a_call_is_not_waited_for():
    assert faults.run(920170, scripts=True, server=True)["stopped with too few workers"] == 1


@pytest.mark.parametrize("seed", [6, 135])
def test_a_rank_that_lacks_a_state_while_gradients_are_accumulated_is_not_waited_for(seed):
    """Once its chunks were: nobody could give it a state before the iteration was over."""
    assert faults.run(seed, scripts=True)["do nothing without a state"] > 0


def test_a_run_in_which_only_rank_0_is_not_behind_while_gradients_are_accumulated_ends():
    assert faults.run(141, scripts=True)["stopped with too few workers"] == 1


def test_a_rank_that_is_left_out_while_it_makes_the_step_before_can_do_what_is_lost():
    """Once it waited for ever: it was at the iteration, and did not follow it."""
    faults.run(449, scripts=True)


def test_a_wrong_replica_that_is_dropped_in_a_call_makes_that_call_again_with_the_right_state():
    assert faults.run(883, scripts=True)["states loaded"] > 0


def test_a_rank_that_has_the_state_of_an_iteration_whose_sum_it_does_not_get_leaves_when_the_run_ends():
    """Once it waited for that sum until rank 0 killed it."""
    faults.run(697, scripts=True)


def test_a_worker_that_lacks_a_state_at_the_end_is_told_that_nothing_more_comes():
    """Once it waited for sums until rank 0 killed it."""
    assert faults.run(20243, scripts=True, server=True)["killed"] == 0


def test_a_rank_that_waits_for_a_lost_owner_while_gradients_are_accumulated_is_not_waited_for():
    """Once rank 0 waited for a state that it could not give."""
    assert faults.run(1088, scripts=True)["lost"] == 2


@pytest.mark.parametrize("seed", [3099, 3214])
def test_a_rank_that_alone_is_in_the_middle_of_a_step_does_not_take_over_where_others_could_not_follow_it(seed):
    """Once the run ended with too few workers: nobody could give the others a state."""
    assert faults.run(seed, scripts=True, server=True, coordinator=True)["takeovers"] > 0


def test_ranks_that_were_in_the_middle_of_a_step_go_back_to_the_state_of_the_new_rank_0():
    assert faults.run(3099, scripts=True, server=True, coordinator=True)["gone back"] > 0


def test_a_rank_that_was_given_the_state_of_one_that_differs_is_noticed_as_well():
    assert faults.run(541745, scripts=True, hosts=True)["lost"] == 4  # one of them twice: after that a gradient failed
