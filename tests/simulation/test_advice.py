"""What is tried for a recorded run, what is recommended, and why."""

import numpy as np
import pytest

from psgc import config as configuration
from psgc.errors import UserError
from psgc.simulation.advice import Grid, choices, reason, recommended, yaml_lines
from psgc.simulation.replay import Choice, Prediction
from tests.simulation.recorded import settings, torch_settings

OWN = Choice("dynamic", 8, 3, 1)


def prediction(seconds, data=0.5, incoming=100.0, choice=OWN):
    return Prediction(choice, np.array([seconds]), 0.0, 0.0, data, 1, None, incoming, 10.0)


def test_without_a_grid_what_lies_around_the_run_is_tried():
    tried = choices(Grid(), OWN, workers=8)
    assert len(tried) == len(set(tried)) == 5 * (2 + 4 * 2 + 4) - 1
    assert OWN not in tried
    assert {choice.chunks for choice in tried} == {1, 2, 4, 8, 16}
    assert {choice.parts for choice in tried} == {1, 2}
    for choice in tried:
        assert choice.replication == choice.parts if choice.schedule == "uncoded" else choice.replication > choice.parts


def test_a_grid_is_taken_as_it_is_but_for_parts_without_holders():
    grid = Grid(replication=[1, 2], chunks_per_worker=[5], parts=[1, 2], schedule=["static", "uncoded"])
    assert choices(grid, OWN, workers=8) == [
        Choice("static", 5, 1, 1),
        Choice("static", 5, 2, 1),
        Choice("static", 5, 2, 2),
        Choice("uncoded", 5, 1, 1),
        Choice("uncoded", 5, 2, 2),
    ]


def test_a_run_without_redundancy_is_not_tried_once_more_with_another_replication():
    tried = choices(Grid(schedule=["uncoded"], parts=[1]), Choice("uncoded", 8, 3, 1), workers=8)
    assert tried == [Choice("uncoded", chunks, 1, 1) for chunks in (1, 2, 4, 16)]


def test_nobody_holds_a_chunk_twice():
    assert {choice.replication for choice in choices(Grid(), Choice("dynamic", 1, 2, 1), workers=2)} == {1, 2}
    assert {choice.chunks for choice in choices(Grid(), Choice("dynamic", 1, 1, 1), workers=1)} == {1, 2}


def test_with_torch_chunks_are_those_of_all_workers_and_enough_for_each():
    own = Choice("dynamic", 60, 3, 1, per_worker=False)
    assert {choice.chunks for choice in choices(Grid(), own, workers=4)} == {7, 15, 30, 60, 120}
    assert not any(choice.per_worker for choice in choices(Grid(chunks=[8]), own, workers=4))
    with pytest.raises(UserError, match=r"^--chunks-per-worker: this run's chunks .* psgc.torch; expected --chunks$"):
        choices(Grid(chunks_per_worker=[8]), own, workers=4)
    with pytest.raises(UserError, match=r"^--chunks: this run's chunks .* each worker; expected --chunks-per-worker$"):
        choices(Grid(chunks=[8]), OWN, workers=4)


def test_an_assignment_from_a_file_leaves_schedule_and_parts():
    tried = choices(Grid(parts=[1, 4]), OWN, workers=8, from_file=True)
    assert len(tried) == 2 * 5 - 1
    assert {(choice.chunks, choice.replication) for choice in tried} == {(8, 3)}


@pytest.mark.parametrize(
    ("predictions", "expected", "quick"),
    [
        ([prediction(1.0), prediction(1.2, data=0.1)], 0, 1),  # memory is no reason to be slower
        ([prediction(1.0), prediction(1.02, data=0.25), prediction(1.025, data=0.25, incoming=50)], 2, 3),
        ([prediction(1.01), prediction(1.0)], 1, 2),  # nothing else differs: the quickest
        ([prediction(1.0, incoming=None), prediction(1.02, data=0.25, incoming=None)], 1, 2),
    ],
)
def test_of_those_as_quick_as_the_best_the_one_that_needs_least_is_recommended(predictions, expected, quick):
    assert recommended(predictions) == (predictions[expected], quick)


def test_the_reason_is_a_sentence_with_what_is_gained():
    advised = prediction(0.05, data=0.25, choice=Choice("dynamic", 16, 2, 1))
    text = reason(advised, prediction(0.1), quick=3, best=0.049)
    assert text.startswith("Schedule dynamic, 16 chunks per worker, replication 2, parts 1: 2.00 x as fast as this run")
    assert "of the 3 settings within 3 % of the best time (49.0 ms) its workers hold the least data (25 % each" in text
    assert text.endswith(".")
    assert reason(prediction(0.1), prediction(0.1), 1, 0.1).startswith("Keep the settings of this run")
    bare = prediction(0.1, choice=Choice("uncoded", 8, 1, 1))
    assert "the chunks of a lost worker have to be read anew" in reason(bare, prediction(0.1), 2, 0.1)


def test_the_lines_to_paste_are_what_was_predicted():
    config = settings("static", chunks_per_worker=8, replication=3)
    text = yaml_lines(config, Choice("dynamic", 16, 2, 2), num_chunks=32, workers=4)
    rest = "problem: {python: 'a:B'}\noptimizer: {kind: sgd, lr: 1.0}\niterations: 1\noutput: x\n"
    read = configuration.from_yaml_text(rest + text)
    assert (read.schedule, read.transfer, read.batch) == ("dynamic", "per_chunk", None)
    assert read.coding == config.coding.model_copy(update={"chunks_per_worker": 16, "replication": 2, "parts": 2})


def test_of_a_torch_run_the_chunks_of_all_and_of_a_script_arguments():
    choice = Choice("dynamic", 15, 2, 1, per_worker=False)
    config = torch_settings("static", chunks=60, replication=3)
    rest = "problem: {torch: 'a:b'}\noptimizer: {torch: SGD}\nbatch: {size: 60, epochs: 1}\noutput: x\n"
    read = configuration.from_yaml_text(rest + yaml_lines(config, choice, num_chunks=60, workers=4))
    assert (read.coding.chunks, read.coding.replication, read.schedule) == (15, 2, "dynamic")
    script = configuration.ScriptConfig(
        problem={"kind": "script", "script": "train.py"}, optimizer={"kind": "script"}, iterations=9, output="x"
    )
    recorded = configuration.from_yaml_text(script.to_yaml())  # as in its run directory
    assert yaml_lines(recorded, choice, num_chunks=60, workers=4) == (
        "psgc.torch.init(..., chunks=15, replication=2, parts=1, schedule='dynamic', transfer='auto')"
    )


def test_with_twice_as_many_chunks_half_as_many_rows_are_sampled_from_each():
    config = settings("static", chunks_per_worker=8).model_copy(update={"batch": 5})
    assert "batch: 2\n" in yaml_lines(config, Choice("static", 16, 3, 1), num_chunks=32, workers=4)
    assert "batch: 10\n" in yaml_lines(config, Choice("static", 4, 3, 1), num_chunks=32, workers=4)
    assert "batch: 1\n" in yaml_lines(config, Choice("static", 80, 3, 1), num_chunks=32, workers=4)
    epochs = config.model_copy(
        update={"batch": configuration.BatchSettings(size=160, epochs=2)}
    )  # of all chunks together
    assert "batch" not in yaml_lines(epochs, Choice("static", 16, 3, 1), num_chunks=32, workers=4)
