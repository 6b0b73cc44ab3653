"""The colours of a report: contrast with their paper, and four outcomes that everybody can tell apart."""

from itertools import combinations

import pytest

from psgc.reporting.drawing import DARK, LIGHT, SERIES
from tests.unit.colours import SEEN, contrast, distance


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_all_that_has_to_be_seen_has_contrast(theme):
    for text in (theme.ink, theme.muted):
        assert contrast(text, theme.paper) > 4.5
    for mark in (*theme.lines, *theme.outcomes):
        assert contrast(mark, theme.paper) > 3


@pytest.mark.parametrize("seen", SEEN)
def test_the_lines_of_several_runs_can_be_told_apart(seen):
    assert min(contrast(colour, LIGHT.paper) for colour in SERIES) > 3
    assert min(distance(one, other, seen) for one, other in combinations(SERIES, 2)) > 15


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_that_stand_side_by_side_can_be_told_apart(theme, seen):
    for one, other in (*combinations(theme.outcomes, 2), theme.lines):
        assert distance(one, other, seen) > 15
