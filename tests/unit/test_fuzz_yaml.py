"""Any bytes, any settings, any --set: one printable line that says where, or settings that read back equal."""

import contextlib
import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from psgc.cli import main
from tests.unit.fuzzed_settings import (
    EVERY_KEY,
    FRAGMENTS,
    KINDS,
    check,
    mutated,
    scalars,
    texts,
    values,
    written,
)
from tests.unit.fuzzing import fuzzed, little_memory, one_line


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    with little_memory():
        yield tmp_path_factory.mktemp("fuzz") / "x.yaml"


# ---------------------------------------------------------------- any bytes

LAUGHS = "a: &a [x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
DEEP = [
    "[" * 100_000,
    "{a: " * 50_000,
    "- " * 100_000,
    "? " * 100_000,
    "[{a: " * 19 + "1",
    "".join(" " * n + "a:\n" for n in range(400)),
]
LARGE = [
    "",
    "a: b\n" * 200_000,
    "\0" * 300_000,
    "x" * 2**18,
    "a: [" + "1," * 20_000 + "]",
    "\n" * 2**18,
    "# x\n" * 2**16,
]
encoded = st.builds(
    lambda text, encoding: text.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace"),
    texts,
    st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]),
)


@pytest.mark.parametrize("kind", KINDS)
@fuzzed(150)
@given(content=encoded | st.binary(max_size=100))
def test_any_bytes(path, kind, content):
    path.write_bytes(content)
    check(kind, path)


@pytest.mark.parametrize("content", [LAUGHS, LAUGHS.replace("&", ""), *DEEP, *LARGE])
def test_large_and_deep_files(path, content):
    path.write_text(content)
    assert check("run", path)


def test_files_that_are_too_large_are_not_even_parsed(path):
    for content in ("a: b\n" * 60_000, "#" * (2**18 + 1), "\0" * 300_000):
        path.write_text(content)
        assert check("run", path) == f"{path}: has more than 262144 bytes, expected a short YAML file"
    path.write_text("#" * 2**18)
    assert "empty" in check("run", path)


# ---------------------------------------------------------------- wrong settings


@pytest.mark.parametrize("kind", KINDS)
@fuzzed(100)
@given(data=st.data())
def test_any_values_and_keys(path, kind, data):
    tree = mutated(data, data.draw(st.sampled_from(KINDS[kind][1])))
    path.write_text(written(tree, data.draw(st.booleans())), encoding="utf-8", errors="surrogatepass")
    check(kind, path)


# ---------------------------------------------------------------- --set

dotted = st.lists(st.sampled_from(EVERY_KEY) | st.text(max_size=3), min_size=1, max_size=3).map(".".join)
overrides = st.lists(
    st.builds(
        lambda key, value: f"{key}={value}",
        dotted,
        st.sampled_from(FRAGMENTS) | scalars.map(str) | values.map(json.dumps),
    )
    | texts,
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("kind", KINDS)
@fuzzed(50)
@example(given_overrides=["coding.parts"])
@example(given_overrides=["a." * 5000 + "a=1"])
@example(given_overrides=["stragglers.factor.=3"])
@example(given_overrides=["stragglers={kind: slow, factor: {'': 3}}"])
@example(given_overrides=["problem={python: 'a:b', options: {x: 1e999}}"])
@example(given_overrides=["problem={python: 'a:b', options: {x: -0.1e-999}}"])
@example(given_overrides=["problem={python: 'a:b', options: {x: &a 1, y: .NaN, z: -.inf}}"])
@example(given_overrides=["seed=0o17"])
@example(given_overrides=["seed=0x1F"])
@example(given_overrides=["seed='7'"])
@example(given_overrides=["problem={python: 'a:b', options: {x: \"\\U00110000\"}}"])
@example(given_overrides=["iterations=" + "[" * 60])
@given(given_overrides=overrides)
def test_any_overrides(path, kind, given_overrides):
    path.write_text(written(KINDS[kind][1][0], as_json=False))
    check(kind, path, tuple(given_overrides))


# ---------------------------------------------------------------- the command line


def command(*arguments):
    """Exit code, lines of stdout and of stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue().splitlines(), err.getvalue().splitlines()


small = st.integers(0, 5) | st.sampled_from([6, 2**31 - 1])
extreme = st.sampled_from([1e-300, 5e-324, 1e-9, 0.5, 1, 3, 1e9, 1e300, 1.7e308])
kind_of = st.sampled_from(["cyclic", "fractional", "graph", "blocks"])
simulations = st.fixed_dictionaries(
    {
        "assignment": st.fixed_dictionaries({"kind": kind_of, "chunks": small, "workers": small, "load": small}),
        "speeds": st.fixed_dictionaries({"kind": st.just("exponential"), "mean": extreme})
        | st.fixed_dictionaries({"kind": st.just("pareto"), "shape": extreme, "minimum": extreme})
        | st.fixed_dictionaries({"kind": st.just("shifted_exponential"), "shift": extreme, "mean": extreme}),
        "trials": st.sampled_from([1, 2, 2**31 - 1]),
    },
    optional={
        "parts": st.lists(st.integers(1, 4), min_size=1, max_size=2),
        "known_speeds": extreme,
        "clock": extreme,
        "deadlines": st.lists(extreme, max_size=2),
        "bound": st.booleans(),
        "seed": st.sampled_from([0, 2**31 - 1]),
    },
)


CYCLIC = {"kind": "cyclic", "chunks": 4, "workers": 4, "load": 2}
EXPONENTIAL = {"kind": "exponential", "mean": 1}
LARGEST = 2**31 - 1


@fuzzed(40)
@example(tree={"assignment": CYCLIC, "speeds": EXPONENTIAL, "trials": LARGEST}, failed=0)
@example(tree={"assignment": CYCLIC | {"workers": LARGEST, "chunks": 2}, "speeds": EXPONENTIAL, "trials": 1}, failed=0)
@example(tree={"assignment": CYCLIC | {"chunks": LARGEST, "workers": LARGEST}, "speeds": EXPONENTIAL}, failed=0)
@example(tree={"assignment": CYCLIC, "speeds": EXPONENTIAL | {"mean": 1e200}, "trials": 3}, failed=0)
@example(tree={"assignment": CYCLIC, "speeds": EXPONENTIAL | {"mean": 1e-200}, "trials": 3, "clock": 1e200}, failed=0)
@example(tree={"assignment": CYCLIC, "speeds": {"kind": "pareto", "shape": 1e-3}, "trials": 3}, failed=0)
@example(tree={"assignment": CYCLIC, "speeds": EXPONENTIAL, "trials": 3, "known_speeds": 1e9}, failed=0)
@given(tree=simulations, failed=st.integers(0, 6) | st.sampled_from(["load", "load - 1", "load - parts"]))
def test_simulate_ends_with_rows_or_with_one_line(path, tree, failed):
    tree = tree | {"speeds": tree["speeds"] | {"failed": failed}}
    path.write_text(written(tree, as_json=False))
    rows = path.with_name("rows.json")
    rows.unlink(missing_ok=True)
    code, _, err = command("simulate", str(path), "--json", str(rows))
    if code == 0:
        assert err == []
        assert len(json.loads(rows.read_text())) == len(tree.get("parts", [1])) * 5
    else:
        assert code == 2
        assert len(err) == 1
        assert one_line(err[0], "psgc")
        assert not rows.exists()
