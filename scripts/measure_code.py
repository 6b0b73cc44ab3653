"""How large the code is, and what makes it hard to read: `python scripts/measure_code.py [--names]`.

A *type name with several meanings* is that of classes in two or more modules, with or without an underscore. A *private
name of another module* is an attribute that begins with one underscore, of anything but `self` and `cls`, or an import
of such a name; a few public names begin with one.
"""

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PUBLIC = {"_exit", "_asdict", "_fields", "_replace", "_repr_html_"}  # of os, of named tuples, and of IPython
SHORT, ARGUMENTS = 60, 8  # lines of a file that may belong into another one; arguments that one call can be read with


def modules(*folders: str) -> Iterator[tuple[Path, str, ast.Module]]:
    """Path, text and syntax tree of each module; psgc/server and psgc/workers are links to server and workers."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                text = path.read_text()
                yield path.relative_to(ROOT), text, ast.parse(text)


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len(named) - (bool(named) and named[0].arg in ("self", "cls"))


def private_uses(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name) if name.startswith("_") and not name.startswith("__"):
                if name not in PUBLIC and not (isinstance(value, ast.Name) and value.id in ("self", "cls")):
                    yield name
            case ast.ImportFrom(names=names):
                yield from (alias.name for alias in names if alias.name.startswith("_") and alias.name != "__version__")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", action="store_true", help="say which, besides how many")
    show = parser.parse_args().names
    source, tests = list(modules("psgc", "server", "workers")), list(modules("tests"))
    types, long, short = defaultdict(list), [], []
    for path, text, tree in source:
        if 0 < text.count("\n") <= SHORT:
            short.append(f"{path}: {text.count(chr(10))}")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                types[node.name.lstrip("_")].append(str(path))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and arguments(node) > ARGUMENTS:
                long.append(f"{path}: {node.name}, {arguments(node)}")
    ambiguous = [f"{name}: {', '.join(paths)}" for name, paths in sorted(types.items()) if len(paths) > 1]
    private = [f"{path}: {name}" for path, _, tree in tests for name in private_uses(tree)]
    print(f"{sum(text.count(chr(10)) for _, text, _ in source):7} lines of psgc, server and workers")
    print(f"{sum(text.count(chr(10)) for _, text, _ in tests):7} lines of tests")
    print(f"{len(source):7} files of psgc, server and workers")
    for what, found in (
        (f"files of {SHORT} lines or fewer", short),
        ("type names with several meanings", ambiguous),
        (f"functions with more than {ARGUMENTS} arguments", long),
        ("uses of private names of other modules in tests", private),
    ):
        print("\n".join([f"{len(found):7} {what}", *(f"          {one}" for one in found if show)]))


if __name__ == "__main__":
    main()
