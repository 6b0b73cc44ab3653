"""Whether a command in the documentation works: those of psgc are run, as far as that needs no cluster and no MPI.

The others are checked: make's targets, scripts and their options, extras of the package, files.
"""

import re
import shlex
import shutil
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import pytest

from psgc import __version__, cli
from psgc.config import load
from tests.unit.documents import ROOT
from tests.unit.fake_mpirun import OPEN_MPI

SETUP, MAKEFILE = (ROOT / "setup.py").read_text(), (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w./-]+):(?!=)", MAKEFILE, re.MULTILINE))
PYTHON = re.compile(r"(\.venv/bin/)?python3?")


def check(line: str) -> None:
    """Fails when a line of a shell does not work. The current folder has the files that it names."""
    words = shlex.split(line, comments=True)
    while "&&" in words:
        check(shlex.join(words[: words.index("&&")]))
        words = words[words.index("&&") + 1 :]
    while re.fullmatch(r"[A-Za-z_]+=.*", words[0]):  # variables before the program
        words = words[1:]
    program, *arguments = words
    if program == "psgc":
        run_psgc(arguments)
    elif program == "mpirun":
        assert arguments[:1] == ["-n"]
        check(shlex.join(arguments[2:]))
    elif program == "make":
        targets = [word for word in arguments if "=" not in word]
        assert targets
        assert set(targets) <= TARGETS, line
    elif PYTHON.fullmatch(program):
        check_python(arguments)
    elif program == "torchrun":
        assert Path(arguments[-1]).is_file(), line
    elif program in ("mkdir", "cp"):
        pass
    elif program == "pip":
        check_pip(arguments)
    else:
        assert (ROOT / program).is_file(), f"{line}: no test knows the program {program}"


def run_psgc(arguments: list[str]) -> None:
    """Runs `psgc` in this process. What would start ranks is only checked."""
    command, rest = arguments[0], arguments[1:]
    if command == "launch":
        arguments = ["launch", "--print", *rest]
    if command in ("train", "doctor"):  # tests/ranks runs them
        options = parsed(arguments)
        if command == "train":
            load(options.config, options.overrides)
    else:
        arguments = [name for word in arguments for name in runs(word)]
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code in (0, None), f"psgc {shlex.join(arguments)}: exit code {end.value.code}"


def runs(word: str) -> list[str]:
    """The word, or the run directories that a pattern such as runs/* means."""
    return sorted(str(path.parent) for path in Path().glob(f"{word}/config.yaml")) if "*" in word else [word]


def parsed(arguments: list[str]):
    """What the command line says."""
    return cli.parser_for(arguments[0]).parse_args(arguments)


def check_python(arguments: list[str]) -> None:
    """Scripts are there and know their options; tests are there."""
    while arguments[0] == "-P":
        arguments = arguments[1:]
    if arguments[0] == "-m":
        module, rest = arguments[1], arguments[2:]
        assert module in ("pytest", "build", "psgc", "tests.faults.table", "http.server"), module
        if module != "http.server":  # it serves a folder that a command before it makes
            assert all((ROOT / word).exists() for word in rest if not word.startswith("-"))
        return
    script = ROOT / arguments[0] if arguments[0].startswith("scripts/") else Path(arguments[0])
    text = script.read_text()
    for option in (word.split("=")[0] for word in arguments[1:] if word.startswith("--")):
        assert f'"{option}"' in text, f"{arguments[0]} has no option {option}"


def check_pip(arguments: list[str]) -> None:
    """The extras that are installed are those of setup.py, and the wheel has the name that it gets."""
    assert arguments[0] in ("install", "download")
    for what in arguments[1:]:
        for extra in re.findall(r"\[(.*)\]", what):
            assert all(f'"{name}": ' in SETUP for name in extra.split(",")), what
        if ".whl" in what:
            assert what.startswith(f"dist/psgc_mpi-{__version__}-py3-none-any.whl")


def check_in_sentence(command: str) -> None:
    """As `check`, for a command that may lack arguments: `psgc launch --print`."""
    words = shlex.split(command)
    if words[0] != "psgc":
        return check(command)
    words = words[: words.index("--")] if "--" in words else words
    assert words[1] in cli.COMMANDS, command
    options = parsed_help(words[1])
    for option in (word.split("=")[0] for word in words[2:] if word.startswith("--")):
        assert re.search(rf"{option}\b", options), command
    return None


def parsed_help(command: str) -> str:
    """What `psgc COMMAND --help` prints."""
    printed = StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        cli.parser_for(command).parse_args([command, "--help"])
    return printed.getvalue()


def prepare(folder: Path) -> None:
    """The scripts, simulations made small, and what psgc calls: an sbatch and an mpirun."""
    (folder / "bin").mkdir()
    for program, answer in {"sbatch": "1", "mpirun": OPEN_MPI}.items():
        (folder / "bin" / program).write_text(f'#!/bin/sh\necho "{answer}"\n')
        (folder / "bin" / program).chmod(0o755)
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "scripts").glob("*.yaml"):
        small = re.sub(r"^trials: \d+", "trials: 2", path.read_text(), flags=re.MULTILINE)
        path.write_text(re.sub(r"^workers: \[.*\]", "workers: [8]", small, flags=re.MULTILINE))
