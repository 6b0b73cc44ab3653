import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from psgc.errors import UserError
from psgc.yaml_source import YamlSource, printable, shown, to_text

trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**90), 10**90) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def message_of(text, *overrides):
    with pytest.raises(UserError) as caught:  # noqa: PT012  either may refuse
        source = YamlSource(text, "run.yaml")
        for override in overrides:
            source.override(override)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("12.", 12.0),
        ("007", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("-.inf", -math.inf),
        (".nan", math.nan),
        ("no", "no"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2013-01-01", "2013-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'12'", "12"),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    assert repr(YamlSource(f"key: {text}", "x").tree["key"]) == repr(value)


def test_keys_are_text():
    assert YamlSource("{3: 1, null: 2, <<: 3}", "x").tree == {"3": 1, "null": 2, "<<": 3}


def test_places_are_lines_of_keys():
    source = YamlSource("a: 1\nb:\n  c:\n    [1]\n", "run.yaml")
    assert source.place(("a",)) == "run.yaml:1"
    assert source.place(("b", "c")) == "run.yaml:3"
    assert source.place(("b", "c", "0")) == "run.yaml:3"  # nearest parent
    assert source.place(("b", "missing")) == "run.yaml:2"
    assert source.place(()) == "run.yaml"


@given(trees)
def test_written_trees_read_back_equal(tree):
    assert YamlSource(to_text(tree), "x").tree == tree
    assert YamlSource(to_text({"key": tree}), "x").tree == {"key": tree}


@given(st.text(alphabet="0123456789+-.eExXoOnNyaAtTrRfFsSuUlL~:_", max_size=8))
def test_text_is_written_so_that_yaml_1_1_reads_text_too(text):
    assert yaml.safe_load(to_text({"key": text})) == {"key": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "run.yaml:3: a: given twice, first at run.yaml:1"),
        ("a:\n  b: 1\n  'b': 2", "run.yaml:3: a.b: given twice, first at run.yaml:2"),
        ("a: [1", "run.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2", "run.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        (
            "a:\n  b: 1\n c: 2",
            "run.yaml:3: not valid YAML: expected <block end>, but found '<block mapping start>'; "
            "are the lines of a section indented alike?",
        ),
        ("a: 1\n---\nb: 2", "run.yaml:2: not valid YAML: but found another document"),
        ("a: &x 1\nb: *x", "run.yaml:1: not valid YAML: anchors (&name) are not supported"),
        ("a: 1\nb: *x", "run.yaml:2: not valid YAML: aliases (*name) are not supported"),
        ("%YAML 1.1\n---\na: no", "run.yaml:1: not valid YAML: directives (%NAME) are not supported"),
        ("a: {b: 1e400}", "run.yaml:1: a.b: expected a number that a float64 can hold, got 1e400"),
        ("a: 0.01e-400", "run.yaml:1: a: expected a number that a float64 can hold, got 0.01e-400"),
        ("a: !!python/tuple [1]", "run.yaml:1: not valid YAML: tags (!name) are not supported"),
        ("a: ! 1", "run.yaml:1: not valid YAML: tags (!name) are not supported"),
        ("a: 1\n[1]: 2", "run.yaml:2: expected a plain word as key, got a list"),
        ("a: 1\nb: \a", "run.yaml:2: not valid YAML: a character that is not text"),
        (r'a: "\U00110000"', "run.yaml:1: not valid YAML: a character or number that does not exist"),
        ("[" * 5000, "run.yaml:1: not valid YAML: nested more than 20 deep"),
    ],
)
def test_refused_text(text, message):
    assert message_of(text) == message


def test_overrides_replace_add_and_are_remembered():
    source = YamlSource("a: {b: 1, c: 2}\nd: 5", "run.yaml")
    for override in ("a.b=[1, 2]", "d={e: 1e3}", "f.g.h=x", "a.c="):
        source.override(override)
    assert source.tree == {"a": {"b": [1, 2], "c": None}, "d": {"e": 1000.0}, "f": {"g": {"h": "x"}}}
    assert source.place(("a",)) == "run.yaml:1"
    assert source.place(("a", "b")) == "--set a.b=[1, 2]"
    assert source.place(("d", "e")) == "--set d={e: 1e3}"
    assert source.place(("f", "g")) == "--set f.g.h=x"


def test_an_override_of_an_empty_file_or_key_makes_a_mapping():
    source = YamlSource("", "run.yaml")
    assert source.tree is None
    source.override("a=b=c")
    assert source.tree == {"a": "b=c"}
    source = YamlSource("a:", "run.yaml")
    source.override("a.b=1")
    assert source.tree == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "--set a: expected key=value, for example coding.parts=2"),
        ("=1", "--set =1: expected key=value, for example coding.parts=2"),
        ("a..b=1", "--set a..b=1: expected key=value, for example coding.parts=2"),
        ("a.b=1", "--set a.b=1: a is 1, not a mapping"),
        ("a.b.c=1", "--set a.b.c=1: a is 1, not a mapping"),
        ("a=[", "--set a=[: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a={b: 1, b: 2}", "--set a={b: 1, b: 2}: a.b: given twice, first at --set a={b: 1, b: 2}"),
        (".".join("b" * 21) + "=1", "--set b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b=1: nested more than 20 deep"),
        (
            ".".join("b" * 20) + "=[1]",
            "--set b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b.b=[1]: not valid YAML: nested more than 20 deep",
        ),
        ("a={\n", "--set a={\\n: not valid YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_refused_overrides(override, message):
    assert message_of("a: 1", override) == message


def test_printable_and_shown_are_short_and_on_one_line():
    assert printable("a\nb\u2028\udc80") == r"a\nb\u2028\udc80"
    assert len(printable("x" * 300)) == 100
    values: list[Any] = [None, True, 3, "x", [1], {}]
    assert [shown(value) for value in values] == ["nothing", "true", "3", "'x'", "a list", "a mapping"]
    assert len(shown("x" * 300)) == 60
