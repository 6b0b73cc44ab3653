"""What figures have in common: lines through many points, and scales."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from psgc.reporting.drawing import image, new_figure
from psgc.reporting.picture import MANY, course, spread, unit_of


def drawn(y):
    axes = new_figure(6).subplots()
    course(axes, np.arange(len(y)), np.asarray(y), "#000000", "name")
    return axes


def test_few_points_are_a_line_through_them():
    (line,) = drawn(np.arange(MANY)).lines
    assert line.get_ydata().tolist() == list(range(MANY))


@pytest.mark.parametrize("count", [MANY + 1, 10_000])
def test_many_are_points_and_a_line_through_their_running_medians(count):
    y = 0.05 + 0.001 * np.random.default_rng(0).random(count)
    y[50::100] = 1.0
    axes = drawn(y)
    points, line = axes.lines
    assert points.get_ydata().tolist() == y.tolist()
    assert max(line.get_ydata()) < 0.06  # what is far off is among the points, not in the line
    middle = len(line.get_xdata()) // 2
    assert line.get_xdata()[middle] == pytest.approx(count / 2, abs=1)
    assert line.get_label() == "name"
    assert len(image(axes.figure)) < 200_000


def test_units():
    assert [unit_of(seconds)[1] for seconds in (20, 10, 9.9, 0.02, 0.0009)] == [
        "seconds", "seconds", "milliseconds", "milliseconds", "microseconds",
    ]  # fmt: skip
    assert unit_of(0.5)[0] * 0.5 == 500


def test_a_scale_is_logarithmic_only_where_that_shows_more():
    assert spread(np.array([1.0, 1.0, 5.0]), 4)
    assert not spread(np.array([1.0, 1.0, 3.0]), 4)
    assert not spread(np.array([0.0, 1.0, 9.0]), 4)
    assert not spread(np.array([]), 4)
