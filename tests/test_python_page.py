"""The page and the notebook about Python: their code runs, in order, as they stand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import environment

ROOT = Path(__file__).parent.parent
NOTEBOOK = json.loads((ROOT / "docs/python.ipynb").read_text())
SCRIPTS = {
    "python.md": re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL),
    "python.ipynb": ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_code_can_be_parsed(name: str) -> None:
    assert len(SCRIPTS[name]) > 3
    for block in SCRIPTS[name]:
        compile(block, name, "exec")


def test_the_notebook_holds_no_results() -> None:
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in NOTEBOOK["cells"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_code_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("\n\n".join(SCRIPTS[name]))
    variables = environment(PYTHONPATH=str(ROOT), MPLBACKEND="Agg")
    with open(tmp_path / "output", "w") as output:
        job = subprocess.run(
            [sys.executable, "script.py"], cwd=tmp_path, env=variables, stdout=output, stderr=output, check=False
        )
    assert job.returncode == 0, (tmp_path / "output").read_text()
    assert (tmp_path / "agent.pt").exists()
