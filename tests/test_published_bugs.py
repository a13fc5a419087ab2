"""Faults of published agents, put into this program: the checks of this suite notice each of them.

Two kept an agent of CarRacing from learning (Evgenii-Iurin/PPO_Car_Racing), two made another learn to fail
(denismegerle/rl-ppo-agent).
"""

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppo.algorithm import equations, rollout
from ppo.algorithm.rollout import Collector
from ppo.config import PPOSettings
from ppo.presets import PRESETS
from tests.algorithm import test_equations, test_loss, test_ratios, test_rollout, test_update
from tests.algorithm.learners import build

Patch = Callable[[pytest.MonkeyPatch], None]


def store_the_next_observation(patch: pytest.MonkeyPatch) -> None:
    """Put s_{t+1} beside a_t, log pi(a_t|s_t) and V(s_t): what was acted on has been overwritten when it is stored."""
    steps = Collector._steps

    def late(collector: Collector, group: slice, noise: torch.Tensor, episodes: list[Any]) -> Any:
        observations = collector._rollout.observations
        for t, _ in enumerate(steps(collector, group, noise, episodes)):
            if t:  # the world has taken the step before
                observations[t - 1, group] = observations[t, group]
            yield
        observations[-1, group] = torch.from_numpy(collector._envs.observations[group])

    patch.setattr(Collector, "_steps", late)


def forget_ends(patch: pytest.MonkeyPatch) -> None:
    """Set `done` back before it is stored, so that values and advantages leak from episode to episode."""
    following_values = rollout.following_values

    def leaking(collected: rollout.Rollout, *values: torch.Tensor) -> torch.Tensor:
        collected.dones.zero_()
        return following_values(collected, *values)

    patch.setattr(rollout, "following_values", leaking)


def turn_the_sign_of(name: str) -> Patch:
    def turn(patch: pytest.MonkeyPatch) -> None:
        equation = getattr(equations, name)
        patch.setattr(equations, name, lambda *given, **kind: -equation(*given, **kind))

    return turn


BUGS: dict[str, Patch] = {
    "the next observation is stored": store_the_next_observation,
    "ends are forgotten": forget_ends,
    "the surrogate is made small": turn_the_sign_of("clipped_surrogate_loss"),
    "the value error is made large": turn_the_sign_of("value_loss"),
}
GRADIENT_BY_HAND = ("the gradient by hand", lambda: test_loss.check_gradient("categorical", None))
GRADIENT_OF_LEARNER = ("the learner's gradient", test_update.test_the_gradient_is_that_of_the_loss_written_out)
CHECKS: dict[str, list[tuple[str, Callable[[], None]]]] = {
    "the next observation is stored": [
        ("rows", test_rollout.test_a_row_holds_the_observation_its_action_was_taken_in),
        ("rewards", test_rollout.test_a_row_holds_the_reward_its_action_earned),
        ("ratios", lambda: test_ratios.test_ratios_are_one_with_every_distribution("categorical")),
        ("ratios in CartPole", lambda: test_ratios.test_ratios_are_one_in_real_worlds("CartPole-v1")),
    ],
    "ends are forgotten": [
        ("ends", test_rollout.test_every_kind_of_end_is_stored_on_the_step_that_led_to_it),
        ("next values", test_rollout.test_next_values_are_zero_at_an_end_and_the_final_observations_value_at_a_cut),
    ],
    "the surrogate is made small": [
        GRADIENT_BY_HAND,
        GRADIENT_OF_LEARNER,
        ("the equation", test_equations.test_at_ratio_one_the_surrogate_is_the_policy_gradient),
        ("one update", test_update.test_an_update_makes_good_actions_more_probable),
    ],
    "the value error is made large": [
        GRADIENT_BY_HAND,
        GRADIENT_OF_LEARNER,
        ("the equation", test_equations.test_value_loss_is_half_the_squared_error),
        ("one update", test_update.test_an_update_makes_good_actions_more_probable),
    ],
}


@pytest.mark.parametrize(
    ("bug", "check"),
    [pytest.param(bug, check, id=f"{bug}: {name}") for bug, checks in CHECKS.items() for name, check in checks],
)
def test_the_check_passes_and_notices_the_bug(
    bug: str, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    BUGS[bug](monkeypatch)
    with pytest.raises(AssertionError):
        check()


def return_after_learning(num_updates: int = 12) -> float:
    """Return the mean return of CartPole's last games after so many updates with its preset."""
    names = PPOSettings.__dataclass_fields__
    settings = PPOSettings(**{name: value for name, value in PRESETS["classic"].items() if name in names})
    _, collector, learner = build(settings)
    for update in range(num_updates):
        collected, episodes = collector.collect(update)
        learner.update(collected, update=update, env_steps=0, progress=0.0)
    return statistics.fmean(episode.episode_return for episode in episodes)


@pytest.mark.slow
def test_an_agent_learns_to_balance() -> None:
    assert return_after_learning() > 100


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_an_agent_with_the_bug_does_not_learn_to_balance(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    assert return_after_learning() < 50
