"""Options of the test command, and the table of faults."""

import contextlib
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

import ppo.envs.atari  # noqa: F401  # before ALE, whose ROMs load the faster for it

# Box2D's first import ends the process where a warning is an error, as in these tests.
with contextlib.suppress(ImportError), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import Box2D  # noqa: F401

# They start first, so that no worker still has one when the others are done; --fast leaves them out.
LONGEST_FILES = (
    "tests/faults/test_ranks.py",
    "tests/test_loop.py",
    "tests/faults/test_storage.py",
    "tests/test_playback.py",
    "tests/faults/test_preemption.py",
    "tests/envs/test_engine.py",
    "tests/benchmark/test_command.py",
    "tests/faults/test_resume.py",
    "tests/test_launcher.py",
    "tests/envs/atari/test_game.py",
    "tests/envs/atari/test_vector.py",
    "tests/envs/atari/test_raw_returns.py",
    "tests/envs/atari/test_fire.py",
    "tests/envs/test_car_racing.py",
    "tests/test_check_every_world.py",
    "tests/test_same_training.py",
    "tests/test_evaluation.py",
    "tests/faults/test_resume_of_worlds.py",
    "tests/test_cuda.py",
    "tests/test_seeds.py",
    "tests/test_hostile_checkpoints.py",
    "tests/viewer/test_watch.py",
    "tests/report/test_run_report.py",
    "tests/test_replay.py",
    "tests/comparison/test_compare.py",
    "tests/api/test_agent.py",
    "tests/test_recording.py",
    "tests/envs/test_lost_points.py",
    "tests/viewer/test_measure_watching.py",
)
STARTS_PROCESSES = "--fast: starts processes"
NO_GPU = "there is no GPU that PyTorch can use"


def pytest_addoption(parser):
    parser.addoption("--slow", "--all", action="store_true", help="also run the tests marked slow")
    parser.addoption("--fast", action="store_true", help="neither the longest files nor tests that start processes")
    parser.addoption("--fault-table", metavar="FILE", help="write what the fault suite did and saw as a Markdown table")


def pytest_collection_modifyitems(config, items):
    first = {file: place for place, file in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: first.get(item.nodeid.partition("::")[0], len(first)))
    if config.getoption("--fast"):
        long = [item for item in items if item.nodeid.partition("::")[0] in first]
        config.hook.pytest_deselected(items=long)
        items[:] = items[len(long) :]
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason=NO_GPU)
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.getreports("skipped")
    without = sum(isinstance(report.longrepr, tuple) and NO_GPU in report.longrepr[2] for report in skipped)
    if without:
        terminalreporter.write_line(f"skipped {without} tests marked cuda: {NO_GPU}")


class ProcessesAreSkipped:
    """Skips a test at the moment when the test or one of its fixtures starts a process."""

    def __init__(self):
        self._patch, self._is_asked = pytest.MonkeyPatch(), False

    def pytest_collection_finish(self):
        self._patch.setattr(subprocess.Popen, "__init__", self._start)

    def pytest_unconfigure(self):
        self._patch.undo()

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem):
        self._is_asked = False
        try:
            return (yield)
        except BaseException:
            # The program under test ends its job on any exception, a skip too.
            if self._is_asked:
                pytest.skip(STARTS_PROCESSES)
            raise

    def _start(self, *arguments, **options):
        self._is_asked = True
        pytest.skip(STARTS_PROCESSES)


@pytest.fixture(autouse=True)
def one_thread():
    """Ranks run with one thread, and so do the tests that stand in for them."""
    torch.set_num_threads(1)


@pytest.fixture
def fault_report(request):
    """Report a row of the table of faults: number of the scenario in the plan, what was done, what happened."""

    def report(scenario, did, happened):
        request.node.user_properties.append(("fault", (str(scenario), did, happened)))

    return report


class FaultTable:
    """Collects the rows, from all workers, and writes them at the end."""

    def __init__(self, path):
        self._path = Path(path)
        self._rows = []

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        if report.skipped and "faults" in report.nodeid:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._rows.append(("", name, reason.removeprefix("Skipped: "), "skipped", 0.0))
        if report.failed and not report.user_properties and "faults" in report.nodeid:
            self._rows.append(("", name, f"({report.when})", "**FAILED**", report.duration))
        if report.when != "call" or report.skipped:
            return
        for key, (scenario, did, happened) in report.user_properties:
            if key == "fault":
                outcome = happened if report.passed else f"**FAILED** ({happened})"
                self._rows.append((scenario, name, did, outcome, report.duration))

    def pytest_terminal_summary(self, terminalreporter):
        rows = sorted(self._rows, key=lambda row: (int(row[0] or 99), row[1]))
        lines = ["| scenario | claim | what was done | what happened | seconds |", "|---|---|---|---|---|"]
        lines += [f"| {s} | {name} | {did} | {happened} | {seconds:.1f} |" for s, name, did, happened, seconds in rows]
        self._path.write_text("\n".join(lines) + "\n")
        terminalreporter.write_line(f"wrote {len(rows)} rows to {self._path}")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long or needs a machine of its own; run with --slow")
    config.addinivalue_line("markers", "cuda: needs a GPU; skipped where there is none")
    if config.getoption("--fast"):
        config.pluginmanager.register(ProcessesAreSkipped(), "processes-are-skipped")
        # A test that is skipped where it starts a process leaves its pipes and sockets to the garbage collector.
        config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnraisableExceptionWarning")
    path = config.getoption("--fault-table")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultTable(path), "fault-table")
