import time

import ale_py
import numpy as np
import pytest
import torch

from ppo.collectives import Alone
from ppo.command_line import parse_command_line
from scripts.benchmarking import probe

SMALL = ["--num_envs=4", "--rollout_steps=16", "--minibatch_size=32"]


def config(*flags):
    return parse_command_line([*SMALL, *flags])


class OneOf(Alone):
    """A rank of a job whose other ranks do not exist."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def test_a_rate_is_units_over_seconds_without_the_warm_up():
    calls = []

    def work():
        time.sleep(0.01 if len(calls) > 2 else 0.05)  # the warm-up is slow
        calls.append(1)
        return 10

    rate = probe.Stopwatch(Alone(), 0.2).rate(work)
    assert 300 < rate <= 1000


def test_every_kind_of_work_has_a_rate_in_every_way():
    rates = probe.measure(config(), Alone(), 0.01)
    assert {kind: list(ways) for kind, ways in rates.items()} == {
        "env": ["own pipeline", "AtariVectorEnv", "bare ALEInterface"],
        "inference": ["forward"],
        "training": ["whole"],
    }
    assert all(rate > 0 for ways in rates.values() for rate in ways.values())


def test_ranks_with_uneven_shares_try_the_same_ways():
    # Rank 0 has one environment and 192 samples of a minibatch, rank 1 two environments and 384.
    uneven = config("--num_envs=3", "--rollout_steps=192", "--minibatch_size=576")
    ways = [list(probe.measure(uneven, OneOf(rank, 2), 0.01)["training"]) for rank in (0, 1)]
    assert ways == [["whole", "256 at once"]] * 2


class FakeEmulator:
    """Records its calls; a game is over after 12 frames."""

    def __init__(self):
        self.done, self.frames = [], 0

    def getMinimalActionSet(self):
        return [ale_py.Action.NOOP]

    def getScreenDims(self):
        return 210, 160

    def act(self, action):
        self.frames += 1
        self.done.append("frame")

    def getScreenGrayscale(self, screen):
        assert screen.shape == (210, 160)
        self.done.append("screen")

    def game_over(self):
        return self.frames >= 12

    def reset_game(self):
        self.frames = 0
        self.done.append("reset")


def test_the_bare_loop_reads_the_last_two_of_four_frames_and_starts_a_new_game_when_one_ends(monkeypatch):
    emulators = [FakeEmulator(), FakeEmulator()]
    monkeypatch.setattr(probe, "_load", lambda config, index: emulators[index])
    work = probe.bare_emulators(config(), range(2))
    assert [work() for _ in range(3)] == [2, 2, 2]
    step = ["frame", "frame", "frame", "screen", "frame", "screen"]
    assert [emulator.done for emulator in emulators] == [[*step, *step, *step, "reset"]] * 2


@pytest.mark.parametrize("prepare", [probe.own_pipeline, probe.atari_vector_env, probe.bare_emulators])
def test_a_piece_of_work_is_a_step_of_every_environment(prepare):
    assert prepare(config(), range(3))() == 3


def test_training_makes_the_gradient_of_all_parameters_and_the_same_in_parts():
    gradients = []
    for part in (8, 3):
        torch.manual_seed(0)
        model = probe.build_network(config())
        assert probe.training(model, config(), 8, part=part)() == 8
        gradients.append([parameter.grad.numpy() for parameter in model.parameters()])
        assert all(np.abs(gradient).max() > 0 for gradient in gradients[-1])
    for whole, parts in zip(*gradients, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max())


def test_observations_lie_in_memory_as_those_of_the_environments():
    pixels = probe._pixels(config(), 5)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (5, 4, 84, 84)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
