"""Collecting experience: T steps of this rank's N environments under the current policy.

Row t holds one step: the observation s_t, the raw action a_t taken in it, the policy head's output and
log pi(a_t|s_t), V(s_t), the raw reward r_{t+1} and whether the learner's episode, or the game, ended with it.

Several groups of environments are stepped in turn: while the emulators of one group run, the network acts for another.
With one group this is a plain loop.

The network may be on another device than the CPU: observations are sent there unconverted, and only actions come back.
On a GPU the kernels of a decision are launched as one CUDA graph.
"""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ppo.algorithm.cuda_graph import CUDAGraph
from ppo.algorithm.pixels import gather_pixels
from ppo.collectives.moments import RunningMoments
from ppo.envs import Environments
from ppo.models.actor_critic import ActorCritic
from ppo.models.frozen import freeze
from ppo.random_streams import Purpose, stream


@dataclass(frozen=True)
class Rollout:
    """One rank's experience: (T, N) tensors on the network's device."""

    observations: Tensor
    """(T, N, *observation shape)."""
    actions: Tensor
    """Raw, (T, N, *action shape)."""
    outputs: Tensor
    """Outputs of the policy head that acted, (T, N, K)."""
    log_probs: Tensor
    values: Tensor
    next_values: Tensor
    """V(s_{t+1}): 0 where the episode terminated, V(final observation) where a time limit truncated it."""
    rewards: Tensor
    """Raw."""
    dones: Tensor
    """Whether the learner's episode ended: with the game, at a time limit, or with a life where lives end episodes."""
    game_ends: Tensor
    """Whether the whole game ended."""
    last_observations: Tensor
    """s_T, (N, *observation shape)."""
    cuts: list[tuple[int, int, Tensor]] = field(default_factory=list)
    """Step, environment and final observation of each episode that a time limit truncated."""

    def observations_at(self, indices: Tensor) -> Tensor:
        """Gather observations (B, ...) by flat indices t * N + n, a whole row of memory at a time.

        On the CPU pixels are returned as float32, the type that its convolutions read.
        """
        steps = self.observations.flatten(0, 1)
        if steps.dim() != 4:
            return steps.index_select(0, indices)
        # Images lie channels-last in memory; gathering rows of bytes in that order is one copy and stays channels-last.
        pixels = steps.permute(0, 2, 3, 1)
        rows = pixels.flatten(1)
        gathered = gather_pixels(rows, indices) if rows.device.type == "cpu" else rows.index_select(0, indices)
        return gathered.view(-1, *pixels.shape[1:]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Episode:
    """A finished game: environment, step of the rollout, raw return and length in agent steps."""

    environment: int
    step: int
    episode_return: float
    episode_length: int


class Collector:
    """Steps a block of environments with a policy; games continue from one rollout to the next."""

    def __init__(
        self,
        envs: Environments,
        model: ActorCritic,
        value_normalizer: RunningMoments,
        *,
        indices: range,
        rollout_steps: int,
        seed: int,
    ) -> None:
        """Allocate one rollout's memory.

        Args:
            envs: this rank's block, not yet reset.
            model: the policy and value network.
            value_normalizer: defines the units of the value head.
            indices: global indices of the block, which select its random numbers.
            rollout_steps: T.
            seed: seed of the job.
        """
        self._envs, self._model, self._value_normalizer = envs, model, value_normalizer
        self._indices, self._seed = indices, seed
        self.seconds = {"env": 0.0, "inference": 0.0}
        self._clock = 0.0
        self._network = freeze(model)

        self._device = model.device
        self._distribution = model.distribution
        action_shape, num_outputs = self._distribution.action_shape, self._distribution.num_outputs
        shape, sample = (rollout_steps, envs.num_envs), torch.from_numpy(envs.observations)
        # Rewards and ends are collected on the CPU and sent to the device all together.
        self._rollout = Rollout(
            observations=_empty_like_rows(rollout_steps, sample, self._device),
            actions=torch.zeros(*shape, *action_shape, dtype=self._distribution.dtype, device=self._device),
            outputs=torch.zeros(*shape, num_outputs, device=self._device),
            log_probs=torch.zeros(shape, device=self._device),
            values=torch.zeros(shape, device=self._device),
            next_values=torch.zeros(shape, device=self._device),
            rewards=torch.zeros(shape),
            dones=torch.zeros(shape, dtype=torch.bool),
            game_ends=torch.zeros(shape, dtype=torch.bool),
            last_observations=torch.empty_like(sample, device=self._device),
        )
        # Keyed by the first environment of the group.
        self._graphs: dict[int, CUDAGraph] = {}
        self.newest = self._rollout
        """The last rollout collected."""
        # A GPU reads page-locked memory without the CPU.
        self._on_the_way = torch.empty_like(sample, pin_memory=True) if self._device.type == "cuda" else None

    def reset(self) -> None:
        """Start every environment's first episode."""
        self._envs.reset()

    @torch.inference_mode()
    def collect(self, update: int) -> tuple[Rollout, list[Episode]]:
        """Take T steps everywhere.

        Args:
            update: number of the update, which selects the action noise.

        Returns:
            The rollout, whose memory the next call reuses, and the games that ended in it.
        """
        rollout, envs = self._rollout, self._envs
        steps = len(rollout.actions)
        streams = [stream(self._seed, Purpose.ACTIONS, i, update) for i in self._indices]
        noise = np.stack([self._distribution.noise(generator, steps) for generator in streams], axis=1)
        all_noise = torch.from_numpy(noise).to(self._device)
        episodes: list[Episode] = []
        self.seconds = {"env": 0.0, "inference": 0.0}
        self._clock = time.perf_counter()
        self._network = freeze(self._model)
        rollout.next_values.zero_()
        rollout.cuts.clear()
        groups = [self._steps(group, all_noise[:, group], episodes) for group in envs.groups]
        for _ in range(steps + 1):
            for group in groups:
                next(group, None)
        # Everything that need not be done step by step is done once for the whole rollout.
        made_here = {name: getattr(rollout, name).to(self._device) for name in ("rewards", "dones", "game_ends")}
        rollout = dataclasses.replace(rollout, **made_here)
        rollout.log_probs.copy_(self._distribution.log_prob(rollout.outputs, rollout.actions))
        rollout.values.copy_(self._value_normalizer.denormalize(rollout.values))
        last_values = self._values(rollout.last_observations.copy_(torch.from_numpy(envs.observations)))
        rollout.next_values.copy_(following_values(rollout, rollout.values, last_values, rollout.next_values))
        self._lap("inference")
        self.newest = rollout
        return rollout, episodes

    def _steps(self, group: slice, all_noise: Tensor, episodes: list[Episode]) -> Iterator[None]:
        """Take T steps in a group of environments, yielding after each time actions are sent.

        Args:
            group: the environments.
            all_noise: action noise of the group, (T, group, *noise shape).
            episodes: receives the games that end.
        """
        rollout, envs, indices = self._rollout, self._envs, self._indices[group]
        # One call per tensor makes the views of all rows: one by one, making them would take longer than filling them.
        tensors = (rollout.observations, rollout.actions, rollout.outputs, rollout.values)
        rows = zip(*(tensor[:, group].unbind(0) for tensor in tensors), all_noise.unbind(0), strict=True)
        all_rewards, all_dones, all_ends = (a.numpy() for a in (rollout.rewards, rollout.dones, rollout.game_ends))
        for t, (observations, *decided, noise) in enumerate(rows):
            decisions = self._decide(group, self._upload(observations, group), noise)
            for row, decision in zip(decided, decisions, strict=True):
                row.copy_(decision)
            chosen = self._distribution.to_environment(decisions[0].cpu().numpy())  # waits for the device
            self._lap("inference")

            envs.send(group, chosen)
            yield
            _, rewards, terminated, truncated, info = envs.recv(group)
            self._lap("env")

            # An array that is too short would be broadcast silently.
            for name, array in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
                if array.shape != (len(indices),):
                    raise ValueError(
                        f"{name} of {len(indices)} environments must have shape ({len(indices)},), got {array.shape}"
                    )
            terminal = terminated | info["life_lost"]
            all_rewards[t, group], all_dones[t, group] = rewards, terminal | truncated
            all_ends[t, group] = ended = terminated | truncated
            cut = np.flatnonzero(truncated & ~terminal)
            if cut.size:
                # A time limit truncates the episode: bootstrap from V(final observation).
                final_observations = torch.from_numpy(info["final_obs"][cut]).to(self._device)
                rollout.next_values[t, group][cut] = self._values(final_observations)
                rollout.cuts.extend(
                    (t, group.start + n, final) for n, final in zip(cut.tolist(), final_observations, strict=True)
                )
            for n in np.flatnonzero(ended):
                returns, lengths = info["episode_return"], info["episode_length"]
                episodes.append(Episode(indices[n], t, float(returns[n]), int(lengths[n])))

    def _upload(self, row: Tensor, group: slice) -> Tensor:
        """Copy a group's current observations into a row of the rollout and return that row."""
        observations = torch.from_numpy(self._envs.observations[group])
        if self._on_the_way is None:
            return row.copy_(observations)
        # The previous step's actions have come back, so that the device has finished reading this memory.
        return row.copy_(self._on_the_way[group].copy_(observations), non_blocking=True)

    def _decide(self, group: slice, observations: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Do what `_decisions` does for a group of environments, on a GPU by replaying the recorded kernels."""
        if self._device.type != "cuda":
            return self._decisions(observations, noise)
        if group.start not in self._graphs:
            self._graphs[group.start] = CUDAGraph(self._decisions, (observations, noise))
        return self._graphs[group.start](observations, noise)

    def _decisions(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Return raw actions (N, ...), the outputs (N, K) they were drawn from, and values in the value head's units.

        Args:
            observations: (N, ...).
            noise: action noise, (N, ...).
        """
        outputs, values = self._network(observations)
        return self._distribution.sample(outputs, noise), outputs, values

    def _values(self, observations: Tensor) -> Tensor:
        """Return values in raw units."""
        return self._value_normalizer.denormalize(self._network(observations).values)

    def _lap(self, phase: str) -> None:
        last, self._clock = self._clock, time.perf_counter()
        self.seconds[phase] += self._clock - last


def following_values(rollout: Rollout, values: Tensor, last_values: Tensor, at_ends: Tensor) -> Tensor:
    """Return V(s_{t+1}), (T, N): from the next row, `last_values` after the last row, or `at_ends` at episode ends.

    Args:
        rollout: where episodes end.
        values: V(s_t), (T, N).
        last_values: V(s_T), (N,).
        at_ends: at an episode's end 0, or V(final observation) where a time limit truncated it, (T, N).
    """
    following = torch.cat([values[1:], last_values.unsqueeze(0)])
    return torch.where(rollout.dones, at_ends, following)


def _empty_like_rows(rows: int, sample: Tensor, device: torch.device) -> Tensor:
    """Allocate (rows, *sample.shape) on a device, with the sample's memory order in each row."""
    strides = sample.stride()
    order = sorted(range(sample.dim()), key=lambda axis: -strides[axis])
    storage = torch.zeros((rows, *(sample.shape[axis] for axis in order)), dtype=sample.dtype, device=device)
    return storage.permute(0, *(1 + order.index(axis) for axis in range(sample.dim())))
