"""One iteration as a Gantt chart: which one, and a bar for each chunk where and in the colour that it should be."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from psgc.reporting.gantt import gantt, slowest
from psgc.reporting.picture import MARKED, NAMED_ROWS
from psgc.reporting.run_directory import read_run
from psgc.reporting.theme import DARK, LIGHT
from psgc.run_rows import WorkerEvent
from tests.unit.recorded_runs import changed, record, with_columns


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "out"
    return read_run(record(directory, workers=4, chunks_per_worker=3, iterations=6, slow={2: 5.0}, lost={3: 2}))


def test_the_gantt_chart_has_a_bar_for_each_chunk_in_the_colour_of_its_outcome(run):
    picture = gantt(run, 2)
    axes = picture.draw(DARK).axes[0]
    mine = run.timeline["iteration"] == 2
    outcomes = run.timeline["outcome"][mine]
    bars = {tuple(collection.get_facecolor()[0]): collection.get_paths() for collection in axes.collections}
    assert sum(map(len, bars.values())) == mine.sum()
    assert sorted(map(len, bars.values())) == sorted(np.bincount(outcomes)[np.bincount(outcomes) > 0].tolist())
    boxes = [path.get_extents() for paths in bars.values() for path in paths]
    start, seconds = run.timeline["start"][mine], run.timeline["seconds"][mine]
    assert sorted(box.x0 for box in boxes) == pytest.approx(sorted(1e3 * start))
    assert sorted(box.x1 for box in boxes) == pytest.approx(sorted(1e3 * (start + seconds)))
    assert sorted(round((box.y0 + box.y1) / 2) for box in boxes) == sorted(run.timeline["worker"][mine].tolist())
    recovered, bound = (line.get_xdata()[0] for line in axes.lines)
    assert recovered == pytest.approx(1e3 * run.iterations["seconds"][2])
    assert bound == pytest.approx(1e3 * run.iterations["bound"][2])
    assert [text.get_text() for text in axes.texts] == ["✕ lost in iteration 2"]
    assert [round(text.get_position()[1]) for text in axes.texts] == [3]
    assert axes.get_ylim() == (4.5, 0.5)  # worker 1 on top
    assert picture.title == "Iteration 2, worker by worker"
    assert picture.alt.startswith("Gantt chart of iteration 2, a row for each of 4 workers: 12 chunks used, ")
    assert "chunks lost; recovered after" in picture.alt


def test_without_a_choice_it_is_the_slowest_iteration_that_is_known(run):
    assert slowest(run) == run.iterations["seconds"].argmax()
    slow = with_columns(run, seconds=[1.0, 2.0, 3.0, 9.0, 5.0, 6.0])
    assert slowest(slow) == 3
    assert gantt(slow, None).title == "Iteration 3, worker by worker"
    assert "iteration 3, the slowest, a row" in gantt(slow, None).alt
    kept = slow.timeline["iteration"] != 3
    fewer = {name: column[kept] if name != "outcomes" else column for name, column in slow.timeline.items()}
    assert slowest(changed(slow, timeline=fewer)) == 5


def test_who_is_not_there_is_named_until_they_are_back(run):
    assert gantt(run, 1).caption.endswith("before it delivered.")
    assert [text.get_text() for text in gantt(run, 1).draw(LIGHT).axes[0].texts] == []
    for iteration in (2, 4):
        assert gantt(run, iteration).caption.endswith(" Lost by then: worker 3 (in iteration 2).")
    back = changed(run, events=[*run.events, WorkerEvent(4, 3, "", "returned", "")])
    assert "worker 3 (in iteration 2)" in gantt(back, 3).caption
    assert "in iteration 2" not in gantt(back, 4).caption
    many = [WorkerEvent(0, worker, "n1", "lost", "killed") for worker in range(1, MARKED + 4)]
    assert gantt(changed(run, events=many), 4).caption.endswith(f"{MARKED} (in iteration 0) and 3 more.")


def test_the_rows_of_many_workers_have_no_names_of_their_own(tmp_path):
    workers = NAMED_ROWS + 1
    run = read_run(record(tmp_path / "out", workers, 1, 2, lost={3: 1}))
    axes = gantt(run, 1).draw(LIGHT).axes[0]
    assert len(axes.texts) == 0
    assert len([tick for tick in axes.get_yticks() if 1 <= tick <= workers]) < 12


def test_an_approximate_iteration_does_not_recover(run):
    rough = with_columns(run, error_measure=[0, 0.1, 0, 0, 0, 0])
    assert "; ended, approximate after " in gantt(rough, 1).alt
    (legend,) = gantt(rough, 1).draw(LIGHT).legends
    assert any(text.get_text().startswith("ended, approximate: ") for text in legend.get_texts())
    assert "; recovered after " in gantt(rough, 2).alt
