"""`~` and variables in paths, for every place that reads one: YAML files, `--set`, and the arguments of commands."""

import os
import pwd
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from psgc import config
from psgc.cli import main
from psgc.disk import expanded
from psgc.errors import UserError
from psgc.simulation import settings

RUN = """\
problem: {kind: logistic}
data: {path: train.npz}
optimizer: {kind: sgd, lr: 0.1}
iterations: 3
output: out
"""
SIMULATION = """\
assignment: {kind: file, path: A.npy}
speeds: {kind: file, path: S.npy}
"""
UNSET = "the variable PSGC_NOWHERE is not set; a dollar sign is written as $$"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home, which is not the current directory. PSGC_HERE is set as well, PSGC_NOWHERE is not."""
    for folder in ("home", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PSGC_HERE", "/some/where")
    monkeypatch.setenv("PSGC_EMPTY", "")
    monkeypatch.delenv("PSGC_NOWHERE", raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize("path", ["", "/a/b", "a~", "a/~/b", "./~x", "$", "$1", "$-", "a$/b", "é $ü"])
def test_other_paths_stay(path):
    assert expanded(path) == path


def test_what_is_replaced(home, monkeypatch):
    user = pwd.getpwuid(os.geteuid())
    assert expanded("~") == str(home)
    assert expanded("~/a b") == f"{home}/a b"
    assert expanded(f"~{user.pw_name}/x") == f"{user.pw_dir}/x"
    assert expanded("~/$PSGC_HERE-${PSGC_HERE}x") == f"{home}//some/where-/some/wherex"
    assert expanded("$$PSGC_HERE") == "$PSGC_HERE"
    # what a variable holds is not read again
    monkeypatch.setenv("HOME", "/home/$PSGC_NOWHERE")
    monkeypatch.setenv("PSGC_HERE", "~$$PSGC_NOWHERE")
    assert expanded("~/x") == "/home/$PSGC_NOWHERE/x"
    assert expanded("$PSGC_HERE/x") == "~$$PSGC_NOWHERE/x"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("$PSGC_NOWHERE/x", f"$PSGC_NOWHERE/x: {UNSET}"),
        ("a/${PSGC_NOWHERE}", f"a/${{PSGC_NOWHERE}}: {UNSET}"),
        ("${PSGC:-a}", "${PSGC:-a}: the variable PSGC:-a is not set"),
        ("$PSGC_EMPTY/x", "$PSGC_EMPTY/x: the variable PSGC_EMPTY is not set; a dollar sign is written as $$"),
    ],
)
def test_what_stands_for_nothing_is_refused(path, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        expanded(path)


# what is read from YAML

RUN_PATHS = ["output", "data.path", "data.labels", "data.test", "data.test_labels", "stragglers.path"]
RUN_PATHS += ["coding.assignment.path"]


def at(settings, key):
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


@pytest.mark.parametrize("path", ["~/x", "$PSGC_HERE/x"])
def test_every_path_of_a_run(path):
    """In the YAML, and by --set."""
    values = {"output": path, "data": dict.fromkeys(("path", "labels", "test", "test_labels"), path)}
    values |= {"stragglers": {"kind": "trace", "path": path}, "coding": {"assignment": {"kind": "file", "path": path}}}
    for key in RUN_PATHS:
        Path("run.yaml").write_text(yaml.safe_dump(yaml.safe_load(RUN) | values))
        assert at(config.load("run.yaml"), key) == expanded(path)
        Path("run.yaml").write_text(yaml.safe_dump(yaml.safe_load(RUN) | values | {"output": "out"}))
        assert at(config.load("run.yaml", [f"{key}={path}"]), key) == expanded(path)


@pytest.mark.parametrize("path", ["~/x", "${PSGC_HERE}/x"])
def test_every_path_of_a_simulation(path):
    Path("sim.yaml").write_text(SIMULATION)
    for override, key in (
        (f"assignment.path={path}", "assignment.path"),
        (f"speeds.path={path}", "speeds.path"),
        (f"speeds={{kind: trace, path: '{path}'}}", "speeds.path"),
    ):
        assert at(settings.load("sim.yaml", [override]), key) == expanded(path)


def test_a_variable_that_is_not_set_is_one_line_with_its_place(monkeypatch):
    Path("run.yaml").write_text(RUN.replace(": out", ": $PSGC_NOWHERE/x"))
    with pytest.raises(UserError, match=rf"^run\.yaml:5: output: \$PSGC_NOWHERE/x: {re.escape(UNSET)}$"):
        config.load("run.yaml")
    Path("run.yaml").write_text(RUN)
    with pytest.raises(UserError, match=rf"^--set output=\$PSGC_NOWHERE: \$PSGC_NOWHERE: {re.escape(UNSET)}$"):
        config.load("run.yaml", ["output=$PSGC_NOWHERE"])
    monkeypatch.setenv("PSGC_HERE", "a\nb")
    with pytest.raises(UserError, match=r"^--set output=\$PSGC_HERE: not one line of text$"):
        config.load("run.yaml", ["output=$PSGC_HERE"])


def test_what_psgc_has_written_is_expanded_and_not_read_again(home):
    Path("run.yaml").write_text(RUN)
    resolved = config.load("run.yaml", ["output=~/a$$PSGC_NOWHERE"])
    assert resolved.output == f"{home}/a$PSGC_NOWHERE"
    assert f"output: {home}/a$PSGC_NOWHERE" in resolved.to_yaml()
    assert config.from_yaml_text(resolved.to_yaml()) == resolved


def test_the_yaml_itself(home):
    (home / "run.yaml").write_text(RUN)
    assert config.load("~/run.yaml").output == "out"
    with pytest.raises(UserError, match=r"^\$PSGC_NOWHERE/run\.yaml: the variable"):
        config.load("$PSGC_NOWHERE/run.yaml")


# the arguments of commands


@pytest.mark.parametrize(
    "command",
    [
        "launch ~/r.yaml -n 3 --hostfile ~/x",
        "doctor ~/x",
        "doctor --hostfile ~/x",
        "report ~/x",
        "report run --output ~/x",
        "replay ~/x",
        "replay run --json ~/x",
        "simulate sim.yaml --json ~/x",
        "simulate sim.yaml --plot ~/x",
        "order ~/x",
        "order A.npy --output ~/x",
        "submit run.yaml --nodes 2 --ranks-per-node 2 --time 60 --output ~/x",
    ],
)
def test_every_argument_that_is_a_path(home, monkeypatch, capsys, command):
    monkeypatch.setattr(f"psgc.cli.{command.split()[0]}.run", called := Mock(return_value=0))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit):
        main(command.split(" "))
    (options,) = called.call_args.args
    assert f"{home}/x" in vars(options).values()

    with pytest.raises(SystemExit) as caught:
        main(command.replace("~/x", "$PSGC_NOWHERE/x").split(" "))
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"psgc: $PSGC_NOWHERE/x: {UNSET}\n"
