"""Measure the limits of the machine, on all ranks of a job at the same time; see `limits.py`.

    mpirun -np 2 python -m scripts.benchmarking.probe limits.json 1.5 --preset=atari

The arguments are the file to write, the seconds for each measurement and flags of `python -m ppo`.
"""

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ale_py
import numpy as np
import torch
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from ppo.collectives import Collective, share
from ppo.collectives.abort_guard import AbortGuard
from ppo.collectives.mpi import connect
from ppo.command_line import parse_command_line
from ppo.config import Config
from ppo.envs import make_envs
from ppo.envs.atari import rom_name
from ppo.envs.atari.screens import SCREEN_SIZE
from ppo.families import AtariSettings
from ppo.machine import keep_freed_memory
from ppo.models.actor_critic import ActorCritic, build_model

# Activations of more samples exceed the cache, so larger shares of a minibatch are also measured in parts of this size.
_SAMPLES_AT_ONCE = 256
_WARM_UP_SHARE = 0.2
_DIFFERENT_ACTIONS = 4096

Work = Callable[[], int]
"""Does a piece of work and returns its number of units."""


class Stopwatch:
    """Measures rates while all ranks do the same work."""

    def __init__(self, comm: Collective, seconds: float) -> None:
        """Set the seconds of each measurement."""
        self._comm, self._seconds = comm, seconds

    def rate(self, work: Work) -> float:
        """Return this rank's units per second."""
        _repeat(work, self._seconds * _WARM_UP_SHARE)
        self._comm.barrier()
        return _repeat(work, self._seconds)


def _repeat(work: Work, seconds: float) -> float:
    units, started = 0, time.perf_counter()
    while True:
        units += work()
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return units / elapsed


def measure(config: Config, comm: Collective, seconds: float) -> dict[str, dict[str, float]]:
    """Return this rank's rates by kind of work and way of doing it."""
    stopwatch, indices = Stopwatch(comm, seconds), share(config.ppo.num_envs, comm.rank, comm.size)
    ways = {"own pipeline": own_pipeline, "AtariVectorEnv": atari_vector_env, "bare ALEInterface": bare_emulators}
    env = {way: stopwatch.rate(prepare(config, indices)) for way, prepare in ways.items()}
    model = build_network(config)
    per_environment = config.ppo.minibatch_size // config.ppo.num_envs
    num_samples = per_environment * len(indices)
    # All ranks must try the same ways, even if some have one more environment.
    parts = {"whole": num_samples}
    if per_environment * math.ceil(config.ppo.num_envs / comm.size) > _SAMPLES_AT_ONCE:
        parts[f"{_SAMPLES_AT_ONCE} at once"] = _SAMPLES_AT_ONCE
    return {
        "env": env,
        "inference": {"forward": stopwatch.rate(inference(model, config, len(indices)))},
        "training": {
            way: stopwatch.rate(training(model, config, num_samples, part=part)) for way, part in parts.items()
        },
    }


def own_pipeline(config: Config, indices: range) -> Work:
    """Return work that steps the program's own environments."""
    envs = make_envs(config.run.env_name, config.world, indices=indices, seed=config.run.rng_seed)
    assert isinstance(envs.single_action_space, Discrete)
    actions = _random_actions(int(envs.single_action_space.n), indices)
    envs.reset()

    def work() -> int:
        envs.step(next(actions))
        return len(indices)

    return work


def atari_vector_env(config: Config, indices: range) -> Work:
    """Return work that steps ALE's own vector environment with one thread."""
    world = _atari(config)
    envs = AtariVectorEnv(
        rom_name(config.run.env_name),
        len(indices),
        num_threads=1,
        autoreset_mode=AutoresetMode.SAME_STEP,
        max_num_frames_per_episode=world.max_frames,
        repeat_action_probability=world.sticky_actions,
        full_action_space=world.full_action_space,
        stack_num=world.frame_stack,
        noop_max=world.noop_max,
        use_fire_reset=world.fire_reset,
        life_loss_info=world.episodic_life,
        reward_clipping=config.ppo.clip_rewards,
    )
    assert isinstance(envs.single_action_space, Discrete)
    actions = _random_actions(int(envs.single_action_space.n), indices)
    envs.reset(seed=config.run.rng_seed + indices.start)

    def work() -> int:
        envs.step(next(actions))
        return len(indices)

    return work


def bare_emulators(config: Config, indices: range) -> Work:
    """Return work that steps bare emulators: 4 frames, the last two screens in grey, a new game when one ends."""
    emulators = [_load(config, index) for index in indices]
    first = emulators[0]
    chosen = first.getLegalActionSet() if _atari(config).full_action_space else first.getMinimalActionSet()
    codes = np.array([action.value for action in chosen])
    actions = (codes[row].tolist() for row in _random_actions(len(codes), indices))
    screens = np.zeros((2, *first.getScreenDims()), np.uint8)

    def work() -> int:
        for emulator, action in zip(emulators, next(actions), strict=True):
            emulator.act(action)
            emulator.act(action)
            emulator.act(action)
            emulator.getScreenGrayscale(screens[0])
            emulator.act(action)
            emulator.getScreenGrayscale(screens[1])
            if emulator.game_over():
                emulator.reset_game()
        return len(emulators)

    return work


def build_network(config: Config) -> ActorCritic:
    """Return the network that the program would train."""
    envs = make_envs(config.run.env_name, config.world, indices=range(1), seed=config.run.rng_seed)
    return build_model(envs.single_observation_space, envs.single_action_space, config.model, seed=0)


def inference(model: ActorCritic, config: Config, num_samples: int) -> Work:
    """Return work that is a forward pass of the bare network."""
    pixels = _pixels(config, num_samples)

    def work() -> int:
        with torch.inference_mode():
            model(pixels)
        return num_samples

    return work


def training(model: ActorCritic, config: Config, num_samples: int, *, part: int) -> Work:
    """Return work that computes gradients of the bare network for `num_samples` samples, in parts.

    The loss is the simplest that needs both heads; gradients are added to existing memory.
    """
    pixels = _pixels(config, num_samples)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def work() -> int:
        for start in range(0, num_samples, part):
            logits, values = model(pixels[start : start + part])
            (logits.square().sum() + values.square().sum()).backward()
        return num_samples

    return work


def _pixels(config: Config, num_samples: int) -> Tensor:
    """Return observations as the environments hold them: channels-first uint8 in channels-last memory."""
    shape = (num_samples, SCREEN_SIZE, SCREEN_SIZE, _atari(config).frame_stack)
    return torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2)


def _random_actions(num_actions: int, indices: range) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(indices.start)
    return itertools.cycle(generator.integers(num_actions, size=(_DIFFERENT_ACTIONS, len(indices))))


def _atari(config: Config) -> AtariSettings:
    assert isinstance(config.world, AtariSettings)
    return config.world


def _load(config: Config, index: int) -> ale_py.ALEInterface:
    emulator = ale_py.ALEInterface()
    emulator.setInt("random_seed", index)
    emulator.setFloat("repeat_action_probability", _atari(config).sticky_actions)
    path = roms.get_rom_path(rom_name(config.run.env_name))
    assert path is not None
    emulator.loadROM(path)
    emulator.reset_game()
    return emulator


def main(arguments: Sequence[str]) -> None:
    """Measure and write every rank's rates to the file named first."""
    output, seconds, *flags = arguments
    config = parse_command_line(flags)
    comm = connect()
    with AbortGuard(comm):
        torch.set_num_threads(1)
        keep_freed_memory()  # as the program does
        everyone = comm.gather(measure(config, comm, float(seconds)))
        if everyone is not None:
            ways = {
                kind: {way: [rates[kind][way] for rates in everyone] for way in everyone[0][kind]}
                for kind in everyone[0]
            }
            Path(output).write_text(json.dumps(ways))


if __name__ == "__main__":
    main(sys.argv[1:])
