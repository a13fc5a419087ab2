"""A run that is killed again and again; ./scripts/chaos has more of it."""

import json
import subprocess
import sys

import pytest

from tests.faults.running import ROOT
from tests.jobs import environment


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_one_never_killed(tmp_path, fault_report):
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "scripts/chaos.py"), "--kills=8", "--seed=1", f"--output={result}"]
    subprocess.run(command, env=environment(PYTHONPATH=str(ROOT)), timeout=900, check=True)
    outcome = json.loads(result.read_text())
    assert sum(outcome["kills"].values()) == 8
    assert outcome["killed"] == outcome["never killed"]
    fault_report(22, "8 kills -9 at random moments (./scripts/chaos for 50)", "same sha256 of weights, optimiser, logs")
