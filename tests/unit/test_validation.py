"""The building blocks that models of YAML are made of, and where they say that something is wrong."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from psgc.errors import UserError
from psgc.validation import Count, Fraction, PathText, Positive, Section, by_kind, expect, validated
from psgc.yaml_source import YamlSource


class Round(Section):
    kind: Literal["round"]
    radius: Positive = Field(description="a number > 0")


class Square(Section):
    kind: Literal["square"]
    side: Count = 1


Shape = Annotated[Round | Square, by_kind({"round": Round, "square": Square})]


class Drawing(Section):
    shape: Shape = Field(description="a mapping")
    file: PathText = "out"
    grey: Fraction = 0.0
    numbers: Annotated[list[Count], expect("a list of whole numbers >= 1")] = Field([])


def read(text: str, *overrides: str) -> Drawing:
    source = YamlSource(text, "drawing.yaml")
    for override in overrides:
        source.override(override)
    return validated(Drawing, source)


def test_the_kind_chooses_the_model():
    assert read("shape: {kind: round, radius: 2}").shape == Round(kind="round", radius=2.0)
    assert read("shape: {kind: square}").shape == Square(kind="square", side=1)
    attempt = Drawing(shape=Square(kind="square", side=3))  # models made in Python pass as well
    assert attempt.shape.side == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "drawing.yaml: empty, expected a mapping with the keys shape, file, grey, numbers"),
        ("shape: round", "drawing.yaml:1: shape: expected a mapping with kind: round or square, got 'round'"),
        ("shape: {side: 1}", "drawing.yaml:1: shape.kind: missing, expected round or square"),
        ("shape: {kind: [round]}", "drawing.yaml:1: shape.kind: expected round or square, got a list"),
        ("shape: {kind: round}", "drawing.yaml:1: shape.radius: missing, expected a number > 0"),
        ("shape:\n  kind: square\n  sides: 2", "drawing.yaml:3: shape.sides: unknown key, did you mean 'side'?"),
        ("shape: {kind: square, side: 9999999999}", "drawing.yaml:1: shape.side: expected a whole number >= 1 and <= "),
        ("shape: {kind: square}\nnumbers: 3", "drawing.yaml:2: numbers: expected a list of whole numbers >= 1, got 3"),
        ("shape: {kind: square}\nnumbers: [1, x]", "drawing.yaml:2: numbers.1: expected a whole number >= 1, got 'x'"),
    ],
)
def test_one_line_about_the_first_thing_that_is_wrong(text, said):
    with pytest.raises(UserError) as caught:
        read(text)
    assert str(caught.value).startswith(said)
    assert len(str(caught.value).splitlines()) == 1


def test_an_override_is_blamed_for_what_it_wrote():
    with pytest.raises(UserError, match=r"^--set shape\.side=x: expected a whole number >= 1, got 'x'$"):
        read("shape: {kind: square}", "shape.side=x")
    with pytest.raises(UserError, match=r"^--set shape=\{kind: square, sid: 2\}: shape\.sid: unknown key"):
        read("shape: {kind: round}", "shape={kind: square, sid: 2}")
