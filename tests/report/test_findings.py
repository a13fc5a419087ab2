import numpy as np
import pytest

from ppo.report.findings import findings
from ppo.report.logs import read_logs

ROWS = 100


@pytest.fixture
def healthy(tmp_path):
    curves = read_logs(tmp_path).curves
    steps = np.arange(ROWS, dtype=np.float64)
    values = {
        "env_steps": steps,
        "time/seconds": steps,
        "time/steps_per_second": np.full(ROWS, 1000.0),
        "time/env": np.full(ROWS, 0.4),
        "time/learn": np.full(ROWS, 0.6),
        "rollout/return_mean": steps,
        "update/entropy": 1.6 - 0.01 * steps,
        "update/approx_kl": np.full(ROWS, 0.01),
        "update/clip_fraction": np.full(ROWS, 0.1),
        "update/explained_variance": np.full(ROWS, 0.8),
    }
    return {**{name: np.full(ROWS, np.nan) for name in curves}, **values}


def test_nothing_is_said_of_a_healthy_run(healthy):
    assert findings(healthy) == []


def test_nothing_is_said_of_a_short_run(healthy):
    assert findings({name: column[:5] * 100 for name, column in healthy.items()}) == []


@pytest.mark.parametrize(
    "column, values, words",
    [
        ("update/approx_kl", np.full(ROWS, 0.2), "KL 0.2"),
        ("update/clip_fraction", np.full(ROWS, 0.5), "50% of the samples hit the clip range"),
        ("update/explained_variance", np.full(ROWS, -0.2), "explained variance -0.20"),
        ("update/entropy", np.where(np.arange(ROWS) < 20, 1.6, 0.01), "randomness left after 20%"),
        ("rollout/return_mean", 50.0 - abs(50.0 - np.arange(ROWS)), "below its best of 50"),
        ("time/steps_per_second", np.where(np.arange(ROWS) < 60, 1000.0, 400.0), "400 steps per second at the end"),
        ("time/communicate", np.full(ROWS, 1.0), "50% of the time went into exchanging gradients"),
    ],
)
def test_what_is_out_of_the_ordinary_is_named_with_its_figure(healthy, column, values, words):
    (sentence,) = findings({**healthy, column: values})
    assert words in sentence
