"""Workers of a script that are suspended for some seconds, or have a wrong replica: they come back, all is exact."""

import json
import re
from pathlib import Path

import pytest

from tests.ranks.test_torch import launched, trained

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
SECONDS, PAUSE, EPOCHS, STEPS, GAMMA = 2.5, 0.05, 18, 90, 0.9  # the others make about 50 steps meanwhile


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    ended, _ = trained(tmp_path_factory.mktemp("alone"), 0, transfer="per_chunk", epochs=EPOCHS, gamma=GAMMA)
    return ended[0]


@pytest.mark.parametrize("how", [{"aggregation": "server", "transfer": "per_chunk"}, {"aggregation": "allreduce"}])
def test_a_worker_that_is_suspended_for_some_seconds_comes_back(tmp_path, alone, how):
    suspended = {2: ["is suspended", 10, SECONDS]}
    ended, said = launched(tmp_path, 4, what=suspended, pause=PAUSE, epochs=EPOCHS, gamma=GAMMA, output="run", **how)
    assert ended.keys() == {0, 1, 2, 3}
    assert len({digest for digest, *_ in ended.values()}) == 1
    assert ended[0][2] == pytest.approx(alone[2], rel=1e-4)
    if how["aggregation"] == "server":
        assert ended[0][0] == alone[0]  # to the last bit
    assert 11 <= len(ended[2][2]) <= STEPS  # short sums may have waited for it, or it has got a state
    assert not re.search("lost in iteration|psgc:", "\n".join(said))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["exit_code"], summary["lost"]) == ("done", 0, [])


def test_a_worker_with_a_wrong_replica_is_lost_and_comes_back_with_another(tmp_path, alone):
    wrong = {2: ["goes wrong", 32]}  # before the call for which replicas are compared; a chunk of it may have counted
    ended, said = launched(
        tmp_path, 4, what=wrong, pause=PAUSE, epochs=EPOCHS, gamma=GAMMA, output="run", aggregation="server"
    )
    assert ended.keys() == {0, 1, 2, 3}
    assert len({digest for digest, *_ in ended.values()}) == 1
    assert ended[0][2] == pytest.approx(alone[2], rel=1e-2)
    (lost,) = [line for line in said if "lost in iteration" in line]
    compared = re.search(r"at iteration (\d+) it differs from rank 0 in the parameters", lost)
    assert compared is not None, lost
    assert int(compared[1]) in (32, 48)  # later where it has missed that call
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [(one["event"], one["worker"]) for one in summary["lost"]] == [("lost", 3), ("returned", 3)]


RAISES = {"rank": 1, "iteration": 3, "kind": "raise"}
FLIPS = {"rank": 1, "iteration": 5, "kind": "flip", "error": "sign"}
HANGS, PATIENT = ["pauses in a chunk", 3, 600.0], {"chunk_timeout": 5.0}
IDLE = {"transfer": "combined", "verify": {"idle": True}, "schedule": "uncoded"}


@pytest.mark.parametrize(
    ("what", "how"),
    [
        (["killed in a chunk", 3], {"transfer": "per_chunk"}),
        (HANGS, {"aggregation": "allreduce", "faults": PATIENT}),
        (HANGS, {"aggregation": "allreduce", "faults": PATIENT | {"inject": [RAISES]}}),  # it is lost before it hangs
    ],
)
def test_where_every_process_computes_the_first_one_may_die_or_hang_in_a_chunk(tmp_path, what, how):
    """It is rank 0 as well: another one takes over, and goes on computing. Who hangs ends itself."""
    ended, said = launched(tmp_path, 3, what={0: what}, output="run", reproducible=True, **how)
    assert ended.keys() == {1, 2}, said
    whole, _ = trained(tmp_path, 0, reproducible=True)
    assert {digest for digest, *_ in ended.values()} == {whole[0][0]}
    lost = json.loads((tmp_path / "run/summary.json").read_text())["lost"]
    assert sorted({(one["event"], one["worker"]) for one in lost}) == [("lost", 0), ("lost", 1)]


@pytest.mark.parametrize(
    ("fault", "how", "why"),
    [(RAISES, {"aggregation": "allreduce"}, "a fault on purpose"), (FLIPS, IDLE, "one of its copies was wrong")],
)
def test_where_every_process_computes_the_first_one_stays_when_its_worker_is_lost_in_a_chunk(tmp_path, fault, how, why):
    """The chunk returns, so rank 0 can make each step."""
    slow = {0: ["is slow", 0, 0.15]}  # it is in its next chunk when the loss is noticed
    how = {"faults": {"inject": [fault]}, "output": "run", "reproducible": True, **how}
    ended, said = launched(tmp_path, 3, what=slow, **how)
    assert ended.keys() == {0, 1, 2}, said
    whole, _ = trained(tmp_path, 0, reproducible=True)
    assert {digest for digest, *_ in ended.values()} == {whole[0][0]}
    lost = [one for one in json.loads((tmp_path / "run/summary.json").read_text())["lost"] if one["event"] == "lost"]
    assert [one["worker"] for one in lost] == [1]
    assert why in lost[0]["reason"]


@pytest.mark.parametrize(("aggregation", "split"), [("server", 4), ("allreduce", 4), ("server", 9)])
def test_a_rank_in_the_middle_of_a_step_goes_back_where_too_few_have_come_so_far(
    tmp_path, monkeypatch, aggregation, split
):
    """Rank 0 dies when only one other rank has begun the next call. That rank has no state to give to the others.

    Call 10 is the evaluation after the loop.
    """
    monkeypatch.setenv("SPLIT", str(split))
    script, how = str(Path(__file__).with_name("split_script.py")), {"accumulate": 2, "reproducible": True}
    about = {"aggregation": aggregation, "replication": 2, "output": "run"}
    ended, said = launched(tmp_path, 4, "--dedicated-server", script=script, **about, **how)
    expected = {1, 2, 3} if split == 4 else {2, 3}  # rank 1 cannot go back into a loop that has ended
    assert ended.keys() == expected, said
    whole, _ = trained(tmp_path, 0, **how)
    assert {digest for digest, *_ in ended.values()} == {whole[0][0]}
    assert any("worker 2 on" in line and "takes over" in line for line in said), said
