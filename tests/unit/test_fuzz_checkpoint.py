"""Any damage to checkpoints: a line about each that cannot be used, and the newest whole one, bit for bit.

Of what is damaged nothing is used; what carries a right checksum and is no checkpoint is refused in one line as well.
"""

import contextlib
import hashlib
import io
import json
import os
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from psgc.checkpoints import load_newest, write_file
from psgc.run.checkpoint import Checkpoint, read
from tests.unit.fuzzed_files import NO_FILES, arrays, damaged, no_file, quietly
from tests.unit.fuzzing import fuzzed, little_memory


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with little_memory():
        yield tmp_path_factory.mktemp("fuzz")


texts = st.text(max_size=5) | st.sampled_from(["seed: 5\n", "é\x1b[31m\0"])
ABOUT = {"iteration": 30, "num_chunks": 4, "num_workers": 2, "seed": 0, "seconds": 1.0, "data": "", "config": "",
         "version": ""}  # fmt: skip


@st.composite
def checkpoints(draw, iteration):
    dim, dtype = draw(st.integers(0, 5)), draw(st.sampled_from(["f4", "f8"]))
    params, first = np.random.default_rng(draw(st.integers(0, 9))).standard_normal((2, dim)).astype(dtype)
    optimizer = draw(st.sampled_from([{}, {"velocity": 0.0}, {"first": first, "steps": 2**63}]))
    more = {"iteration": iteration, "seconds": draw(st.sampled_from([0.0, 1 / 3, 1e-300, 1e300])), "data": draw(texts)}
    estimates = draw(st.dictionaries(st.integers(1, 9), st.floats(0, 1e300), max_size=3))
    return Checkpoint.model_validate(ABOUT | more | {"params": params, "optimizer": optimizer, "estimates": estimates})


def bits(checkpoint):
    """All that is in it, as text."""

    def shown(value):
        if isinstance(value, dict):
            return {key: shown(inner) for key, inner in sorted(value.items())}
        return (str(value.dtype), value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value

    return repr(shown(vars(checkpoint)))


def newest(directory, *broken):
    """What is found, with one line about each of `broken` and no other."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        checkpoint = load_newest(directory, read)
    assert checkpoint is not None
    for path, line in zip(broken, told.getvalue().splitlines(), strict=True):
        assert line.startswith(f"psgc: {path}: ")
        assert line.endswith("; trying the one before it")
        assert line.isprintable()
        assert len(line) < len(str(path)) + 130
    return checkpoint


def save(checkpoint, directory):
    return write_file(checkpoint.content(), directory)


def made(data, root, count=3):
    """A directory with that many checkpoints, newest first, and what is in them."""
    directory = root / str(len(os.listdir(root)))
    directory.mkdir()
    written = [data.draw(checkpoints(10 * n)) for n in range(count, 0, -1)]
    paths = [save(checkpoint, directory) for checkpoint in written]
    assert bits(newest(directory)) == bits(written[0])
    return directory, paths, [*map(bits, written)]


# ---------------------------------------------------------------- damage


def damage(data, path):
    """Change the file; whether it is another one now."""
    content = path.read_bytes()
    other = data.draw(damaged(content) | st.sampled_from([b"", content[::-1]]))
    path.write_bytes(other)
    return bool(other != content)


@fuzzed(25)
@given(data=st.data())
def test_any_damage_to_some_leaves_the_newest_of_the_others(root, data):
    directory, paths, written = made(data, root)
    victims = data.draw(st.sets(st.sampled_from([0, 0, 0, 1, 2]), min_size=1))
    broken = [number for number in sorted(victims) if damage(data, paths[number])]
    whole = [number for number in range(3) if number not in broken]
    if whole:
        assert bits(newest(directory, *paths[: whole[0]])) == written[whole[0]]
        return
    found, message = quietly(lambda: load_newest(directory, read), "no checkpoint can be used")
    assert found is None
    assert all(f"{path}: damaged, its checksum is wrong" in message for path in paths)


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind not in ("a long name", "a NUL in its name")])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    if kind == "closed to us" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    older = Checkpoint.model_validate(ABOUT | {"iteration": 10, "params": np.ones(3), "optimizer": {}, "estimates": {}})
    other = older.model_copy(update={"iteration": 20})
    save(older, tmp_path)
    path = save(other, tmp_path)
    path.unlink()
    with no_file(kind, path):
        found = newest(tmp_path, *([] if kind == "nothing" else [path]))
    assert bits(found) == bits(older)


@fuzzed(20)
@given(data=st.data())
def test_a_name_that_is_not_its_own_is_noticed(root, data):
    directory, paths, written = made(data, root, count=2)
    number, _, digits = paths[0].stem.partition("-")
    number = data.draw(st.sampled_from([number, "00000040", "99999999999999999999999", "00000000"]))
    digits = data.draw(st.sampled_from([digits, "0" * 16, paths[1].stem.partition("-")[2]]))
    path = paths[0].rename(directory / f"{number}-{digits}.safetensors")
    if path == paths[0]:
        assert bits(newest(directory)) == written[0]
    elif number == "00000000":
        assert bits(newest(directory)) == written[1]
    else:
        assert bits(newest(directory, path)) == written[1]
    path.write_bytes(paths[1].read_bytes())  # one file under two names
    assert bits(newest(directory, *([path] if number != "00000000" else []))) == written[1]


# ---------------------------------------------------------------- a right checksum on something else

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def texts_of(draw, about):
    """JSON about a checkpoint, with other entries, fewer or none, or no JSON."""
    for name in draw(st.lists(st.sampled_from([*about, "more", "params"]), max_size=2)):
        about[name] = draw(anything)
    if draw(st.booleans()):
        about.pop(draw(st.sampled_from(sorted(about))))
    text = json.dumps(draw(st.sampled_from([about, about, about, []])))
    return draw(st.sampled_from([text] * 4 + ["", "\x1b", "[" * 100_000, "1" * 5000]))


@fuzzed(60)
@given(data=st.data())
def test_a_right_checksum_on_any_file(root, data):
    optimizer: Any = {"v": {"__tensor__": "optimizer.v"}, "steps": 3}
    texts = {"psgc": data.draw(texts_of(ABOUT | {"format": 2, "estimates": {"__dict__": [[1, 0.5]]}}))}
    texts |= {"params": '{"__tensor__": "params"}', "optimizer": data.draw(texts_of(optimizer))}
    tensors = {"params": np.ones(3), "optimizer.v": np.ones(3)}
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=1)):
        tensors[name] = data.draw(arrays(dtype=st.sampled_from(["f8", "f4", "f2", "i8", "u1", "?", "c8"])))
    content = safetensors.numpy.save(tensors, texts)
    content = data.draw(st.just(content) | st.just(content) | damaged(content))
    path = root / f"00000030-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    path.write_bytes(content)
    try:
        found, _ = quietly(lambda: read(path))
    except ValueError as error:
        said = str(error)
        assert said.isprintable()
        assert said.startswith(("not a checkpoint of psgc (", "written by a version of psgc", "renamed: it is the"))
    else:
        assert found is not None
        assert found.iteration == 30
        assert found.params.tobytes() in content
    finally:
        path.unlink()
