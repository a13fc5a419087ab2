import pytest

from ppo.settings import Refusal
from scripts.benchmarking import figure
from scripts.benchmarking.plan import Settings, make_cases
from scripts.benchmarking.reach import find_targets
from scripts.benchmarking.report import BEGIN, END, insert, markdown, reach_table
from tests.benchmark.examples import benchmark

THEIRS = {"cleanrl": 250.0, "published": 260.0}
FULL = make_cases(Settings(presets=("atari", "cleanrl"), ranks=(2,)), 2, [])


def lines_with(text, *words):
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_the_reach_table_has_target_measurement_and_verdict():
    table = reach_table(find_targets(benchmark((900, 1900, 1), (900, 1800, 1), (900, 1850, 1), starts=(1.0, 8.0))))
    assert table.splitlines()[0] == "| what | target | measured |  |"
    (share,) = lines_with(table, "over the ideal")
    assert share.endswith("| at least 0.9 | 0.925 (0.900 to 0.950) | met |")
    (start,) = lines_with(table, "second start")
    assert start.endswith("| at most 6 s | 8.0 s | **missed** |")


def test_the_report_names_the_machine_the_command_and_the_versions():
    text = markdown(benchmark((900, 1800, 1)), figure="figures/benchmark.png")
    for word in ("A Processor", "abc1234", "2026-01-01", "    ./scripts/benchmark", "torch 2.13.0", "1.0%"):
        assert word in text
    assert "(figures/benchmark.png)" in text
    assert "do not trust" not in text


def test_the_report_shows_ideal_limits_phases_scaling_and_memory_of_every_case():
    text = markdown(benchmark((800, 1600, 1500)), figure=None)
    assert lines_with(text, "atari -np 2 (64 environments, minibatch 512)", "1,600.0", "2,000.0", "0.800")
    assert lines_with(text, "| atari -np 2, weak (128 environments, minibatch 1024) | 1.88 | 0.938 | 0.938 |")
    assert lines_with(text, "atari -np 1", "env", "fast", "**2,000**")
    assert lines_with(text, "atari -np 1", "env", "slow", "| 1,000 |")
    # 4,096 steps at 1,600 a second are 2.56 s, of which half is spent on emulation; ideally 2.048 s, half of it too.
    assert lines_with(text, "| atari -np 2 | 1.280 | 0.512 | 0.512 | 0.026 | 0.026 | 0.000 | 0.205 | 2.560 |")
    assert lines_with(text, "| atari -np 2, ideal | 1.024 | 0.512 | 0.512 |", "| 2.048 |")
    assert lines_with(text, "| atari -np 2 | 32 | 400 | 200 |")
    assert "7.0 in an empty folder, 5.0 at the second start" in text
    assert "## Stable-Baselines3" not in text


def test_the_report_shows_stable_baselines3_and_the_way_it_ran():
    text = markdown(benchmark((1150, 430), cases=FULL, stable_baselines3=THEIRS), figure=None)
    assert lines_with(text, "its own for Atari", "260.0")
    assert "SubprocVecEnv, 1 thread 250.0" in text
    assert "## Scaling" not in text  # one rank was not measured


def test_a_report_replaces_the_one_before_and_leaves_the_rest_of_the_document():
    document = f"# Title\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    once = insert("new\n", document)
    assert once == f"# Title\n\nbefore\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    assert insert("new\n", once) == once
    assert "new" in insert("new\n", None)


def test_a_document_without_marks_is_refused():
    with pytest.raises(Refusal, match="output must be a folder whose benchmark"):
        insert("new\n", "# My own notes\n")


def test_the_figure_is_drawn(tmp_path):
    for name, found in {
        "scaling": benchmark((900, 1800, 1700), (950, 1700, 1800)),
        "others": benchmark((1150, 430), cases=FULL, stable_baselines3=THEIRS),
    }.items():
        path = tmp_path / f"{name}.png"
        figure.draw(found, path)
        assert path.read_bytes().startswith(b"\x89PNG")
