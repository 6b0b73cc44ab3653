"""The figures: real files with what was simulated in them, whole or not at all."""

import struct

import pytest

pytest.importorskip("matplotlib")

from psgc.cli.simulate import draw_errors, draw_times, figure_of
from psgc.errors import UserError
from psgc.simulation.experiment import ScheduleRow
from psgc.tools.drawing import new_figure, save

ROWS = [
    ScheduleRow(1, "static", 2.0, 0.5, None, None, [3.0, 0.1], 0, 20.0),
    ScheduleRow(2, "static", 3.0, 0.5, None, None, [4.0, 0.0], 0, 30.0),
    ScheduleRow(1, "dynamic", 1.0, 0.2, None, None, [2.0, 0.0], 0, 15.0),
    ScheduleRow(2, "dynamic", None, None, None, None, [3.0, 1.0], 5, None),
]


def drawn(draw, *arguments):
    axes = new_figure(6).subplots()
    draw(axes, *arguments)
    return axes


@pytest.mark.parametrize("deadlines", [[], [1.0, 2.0]])
def test_a_png_is_a_png(tmp_path, deadlines):
    path = tmp_path / "figure.png"
    save(figure_of(ROWS, deadlines), path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == ((1650, 675) if deadlines else (900, 675))
    assert data.endswith(b"IEND\xaeB`\x82")


def test_svg_and_pdf(tmp_path):
    for name, start in (("f.svg", b"<?xml"), ("f.pdf", b"%PDF")):
        save(figure_of(ROWS, [1.0, 2.0]), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)


def test_times_have_bars_of_one_standard_deviation():
    axes = drawn(draw_times, {"static": [(1, 2.0, 0.5), (2, 3.0, 0.25)], "never": []})
    (bars,) = axes.containers
    assert bars.get_label() == "static"
    assert bars.lines[0].get_ydata().tolist() == [2.0, 3.0]
    (segments,) = (collection.get_segments() for collection in bars.lines[2])
    assert [segment[:, 1].tolist() for segment in segments] == [[1.5, 2.5], [2.75, 3.25]]
    assert axes.get_xticks().tolist() == [1, 2]


def test_errors_are_logarithmic_and_zeros_left_out():
    axes = drawn(draw_errors, [2.0, 1.0, 3.0], {"a": [0.1, 3.0, 0.0], "gone": [0.0, 0.0, 0.0]})
    (line,) = axes.lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1.0, 2.0], [3.0, 0.1])
    assert axes.get_yscale() == "log"


def test_nothing_to_draw_is_an_empty_figure(tmp_path):
    nothing = [ScheduleRow(1, "static", None, None, None, None, [0.0], 3, None)]
    save(figure_of(nothing, [1.0]), tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="cannot be written: No such file"):
        save(new_figure(6), tmp_path / "none" / "f.png")
    assert list(tmp_path.iterdir()) == []
