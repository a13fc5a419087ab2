"""A file imports only from its own layer or from layers to its left in LAYERS."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppo
from tests.jobs import CARTPOLE

LAYERS = (
    *("settings", "families", "config", "presets", "random_streams", "standard_streams", "versions", "collectives"),
    *(
        "machine",
        "device",
        "supervision",
        "envs",
        "models",
        "algorithm",
        "outputs",
        "identity",
        "games",
        "agents",
        "evaluation",
        "clips",
        "run",
        "run_trackers",
        "playback",
        "film",
        "start",
        "loop",
        "report",
        "comparison",
    ),
    *("viewer", "doctor", "foreign_flags", "command_line", "launcher", "api", "__main__"),
)
ROOT = Path(ppo.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def layer_of(path: Path) -> str:
    """Return the part of the package that a file belongs to: a module or a folder right under ppo."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in imports(path)]
    return {name[1] for name in parts if name[0] == "ppo" and len(name) > 1}


def packages_imported(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_file_belongs_to_a_layer(path: Path) -> None:
    assert layer_of(path) in ("__init__", *LAYERS)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != ROOT or path.stem != "__init__"])
def test_a_file_imports_only_from_its_own_layer_or_from_the_left(path: Path) -> None:
    allowed = LAYERS[: LAYERS.index(layer_of(path)) + 1]
    assert layers_imported(path) <= set(allowed)


def test_imports_inside_functions_are_seen() -> None:
    assert "loop" in layers_imported(ROOT / "__main__.py")


def test_the_package_itself_imports_nothing_but_its_api() -> None:
    assert layers_imported(ROOT / "__init__.py") <= {"api"}
    assert packages_imported(ROOT / "__init__.py") <= {"ppo", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_file_of_the_package_imports_from_the_scripts(path: Path) -> None:
    assert "scripts" not in packages_imported(path)


def test_only_one_module_of_the_collectives_imports_mpi4py() -> None:
    importers = [name for path, name in zip(FILES, NAMES, strict=True) if "mpi4py" in packages_imported(path)]
    assert importers == ["collectives/mpi.py"]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_the_package_imports_nothing_outside_the_standard_library() -> None:
    program = (
        "import sys, ppo; assert dir(ppo); "
        "sys.exit(bool({'numpy', 'torch', 'gymnasium', 'tyro', 'ppo.api'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_help_and_a_refused_flag_need_neither_torch_nor_gymnasium() -> None:
    program = "import sys, ppo.__main__, ppo.launcher; sys.exit(bool({'torch', 'gymnasium'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_training_imports_nothing_that_only_compilers_need(tmp_path: Path) -> None:
    program = (
        "import sys, ppo.__main__; assert ppo.__main__.main(sys.argv[1:]) == 0; "
        "sys.exit(bool({'sympy', 'torch._dynamo', 'torch._inductor'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *CARTPOLE, "--env_steps=64"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
