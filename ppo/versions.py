"""Versions of the software that a process runs: recorded in checkpoints, compared between ranks."""

import hashlib
import importlib.util
import platform
import re
from importlib import metadata
from pathlib import Path

import ppo
from ppo.config import Config, outside_names

_LIBRARIES = ("torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless")


def versions_here() -> dict[str, str]:
    """Return the version of Python, of this program and of each library that it always needs."""
    own = {"python": platform.python_version(), "ppo": ppo.__version__}
    return own | {package: version_of(package) for package in _LIBRARIES}


def versions_of_run(config: Config) -> dict[str, str]:
    """Return the version of all that can change a run's results.

    These are `versions_here`, the simulators of the world's family, `unknown` where one of them is not installed, and a
    hash of the file of each module outside this package that a setting names.
    """
    outside = {setting: name.partition(":")[0] for setting, name in outside_names(config).items()}
    return {
        **versions_here(),
        **{package: version_of(package) for package in config.family.simulators},
        **{f"module of {setting}": module_version(module) for setting, module in outside.items()},
    }


def module_version(name: str) -> str:
    """Return a short hash of a module's source, `missing` if there is none; imports its parent packages."""
    try:
        spec = importlib.util.find_spec(name)
        source = Path(spec.origin).read_bytes() if spec is not None and spec.origin is not None else None
    except (ImportError, OSError, ValueError):
        source = None
    return "missing" if source is None else hashlib.sha256(source).hexdigest()[:16]


def version_of(package: str) -> str:
    """Return the version of an installed package; `unknown` if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def code_version() -> str:
    """Return a short hash of the package's source, which differs between working copies of one version."""
    digest = hashlib.sha256()
    root = Path(ppo.__file__).parent
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.c")]):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{ppo.__version__} ({digest.hexdigest()[:8]})"


def commit_here() -> str | None:
    """Return the commit checked out in the clone that holds this package; None outside a clone or if unknown."""
    folder = Path(ppo.__file__).parent.parent / ".git"
    try:
        head = (folder / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        if name == head or (folder / name).exists():
            commit = head if name == head else (folder / name).read_text().strip()
        else:
            lines = (folder / "packed-refs").read_text().splitlines()
            commit = next((line.split()[0] for line in lines if line.endswith(f" {name}")), "")
    except (OSError, ValueError):
        return None
    return commit if re.fullmatch(r"[0-9a-f]{40,64}", commit) else None
