"""The update: several epochs of minibatch gradient steps on one rollout, with gradients summed over ranks.

All parameters are views into one flat vector and all gradients go to another, so a minibatch costs one all-reduce and
one optimiser kernel. Logged terms are summed once per epoch.

Everything runs on the model's device, which the CPU waits for only at the end of an epoch: a non-finite gradient stops
the optimiser on the device itself. On a GPU the kernels of a gradient are launched as one CUDA graph.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo.algorithm.adam import Adam
from ppo.algorithm.cuda_graph import CUDAGraph
from ppo.algorithm.flat_parameters import FlatParameters, num_parameters
from ppo.algorithm.loss import TERMS, loss_terms, ppo_loss
from ppo.algorithm.minibatches import minibatch_indices
from ppo.algorithm.noise_scale import GradientNoiseScale
from ppo.algorithm.rewards import RewardTransform
from ppo.algorithm.rollout import Rollout, following_values
from ppo.algorithm.samples import Samples, gather_minibatches, prepare
from ppo.algorithm.schedules import Scheduled, Schedules
from ppo.algorithm.statistics import UpdateStatistics, measures_noise
from ppo.collectives import Collective, share
from ppo.collectives.device_sum import make_device_sum
from ppo.collectives.gradient_sum import shard_of, share_memory
from ppo.collectives.moments import Moments, RunningMoments, moments_over_ranks
from ppo.config import MachineSettings, PPOSettings
from ppo.models.actor_critic import ActorCritic, Policy, Prediction
from ppo.models.bare import bare

# Summed with the gradient: the mean over ranks of each rank's squared gradient norm.
_NUM_SUMS = 1

# Activations of more samples than this fall out of the cache; larger shares are accumulated in parts.
_MAX_SAMPLES_AT_ONCE = 256
# On a GPU they need only fit into its memory: the largest network takes 6 MB for a sample, and a last part of another
# size takes memory of its own.
_MAX_SAMPLES_AT_ONCE_ON_A_GPU = 1024


class Learner:
    """Owns the optimiser, the value normaliser and the schedules; improves the model in place."""

    def __init__(
        self,
        model: ActorCritic,
        value_normalizer: RunningMoments,
        settings: PPOSettings,
        comm: Collective,
        *,
        machine: MachineSettings,
        indices: range,
        seed: int,
        meeting_host: str = "",
    ) -> None:
        """Prepare to update `model` on its device.

        Args:
            model: its parameters become views into one vector.
            value_normalizer: shared with the collector; updated here if the settings say so.
            settings: sizes for the whole job.
            comm: the ranks to sum gradients over.
            machine: how to sum gradients.
            indices: global indices of this rank's environments, which select their shuffles.
            seed: seed of the job.
            meeting_host: host where the ranks find each other if each has its own GPU and the GPUs sum the gradients.
        """
        self._model, self._value_normalizer = model, value_normalizer
        self._settings, self._comm = settings, comm
        self._indices, self._seed = indices, seed
        self._schedules = Schedules(settings)
        self.rewards = RewardTransform(settings, len(indices))
        self._device = model.device
        count = num_parameters(model)
        shared = share_memory(machine, comm, count, _NUM_SUMS) if self._device.type == "cpu" else None
        self.shares_memory = shared is not None
        """Whether the ranks of a host share weights, moments and gradients, and each updates a shard of them."""
        self.is_one_replica = shared is not None and shared.hosts.count == 1
        """Whether all ranks of the job share weights, moments and gradients."""
        self._neighbours = comm if shared is None else shared.hosts.within
        buffer = None if shared is None else shared.gradients[self._neighbours.rank]
        # Every rank fills the shared memory, here and when a checkpoint is loaded. All write the same values, and all
        # meet before any of them updates a weight.
        weights = None if shared is None else shared.parameters
        self._bare = bare(model)
        self._network: Policy = self._bare or model
        moves_gradients = self._device.type == "cpu" and self._bare is None
        self._flat = FlatParameters(model, _NUM_SUMS, buffer, weights, moves_gradients=moves_gradients)
        self._gradient_sum = make_device_sum(
            machine, comm, self._flat.buffer, count, meeting_host=meeting_host, shared=shared
        )
        self._optimizer = Adam(
            count,
            settings.adam_epsilon,
            self._device,
            None if shared is None else shared.moments,
            l2_penalty=settings.l2_penalty,
        )
        self._shard = slice(count) if shared is None else shard_of(count, self._neighbours)
        steps = settings.minibatch_size // settings.num_envs
        shares = [len(share(settings.num_envs, rank, comm.size)) * steps for rank in range(comm.size)]
        self._minibatch_per_share = sum(shares) / shares[comm.rank]
        self._noise_scale = GradientNoiseScale(shares)
        # Keyed by number of samples; all read the observations at the address `_graphs_read`.
        self._graphs: dict[int, CUDAGraph] = {}
        self._graphs_read = 0
        # 1 once any gradient of this update was non-finite.
        self._is_not_finite = torch.zeros((), device=self._device)
        self.seconds = {"learn": 0.0, "communicate": 0.0}
        self.samples: Samples | None = None
        """The samples learnt from in the last epoch of the newest rollout; None if there was no update."""

    def update(self, rollout: Rollout, *, update: int, env_steps: int, progress: float) -> dict[str, float | None]:
        """Improve the policy with one rollout.

        Args:
            rollout: this rank's experience.
            update: number of the update, which selects the shuffles.
            env_steps: agent steps of the job before the rollout.
            progress: env_steps divided by those of the whole run.

        Returns:
            Metrics of the whole job, equal on all ranks.

        Raises:
            Halt: a loss or gradient is non-finite; on all ranks after the same epoch. Neither the first non-finite
                gradient nor any later one has changed a weight.
        """
        started = time.perf_counter()
        self.seconds = {"learn": 0.0, "communicate": 0.0}
        settings = self._settings
        scheduled = self._schedules.at(env_steps=env_steps, progress=progress)
        next_rate, clip_range = scheduled.learning_rate, scheduled.clip_range
        rewards = self.rewards(rollout, self._moments)

        def prepared(rollout: Rollout, *, again: bool = False) -> tuple[Samples, float]:
            normalizer, gae_lambda = self._value_normalizer, scheduled.gae_lambda
            return prepare(rollout, rewards, normalizer, settings, self._moments, gae_lambda=gae_lambda, again=again)

        samples, explained_variance = prepared(rollout)
        statistics = UpdateStatistics(TERMS, self._noise_scale)
        self._is_not_finite.zero_()
        for epoch in range(settings.num_epochs):
            learning_rate = next_rate
            if epoch and settings.recompute_advantages:
                samples, _ = prepared(self._revalued(rollout), again=True)
            indices = minibatch_indices(settings, self._indices, seed=self._seed, update=update, epoch=epoch)
            indices = indices.to(self._device)
            minibatches = gather_minibatches(samples, indices, settings, self._moments)
            steps, predictions = [], []
            for number, (index, *minibatch) in enumerate(zip(indices, *minibatches, strict=True)):
                predictions += self._add_gradients(rollout, index, Samples(*minibatch), clip_range)
                steps.append(self._step(learning_rate, with_noise=measures_noise(number)))
            of_steps, sums = self._read(steps, predictions, minibatches, clip_range)
            kl = statistics.add_epoch(of_steps, sums, update)
            next_rate = self._schedules.after_epoch(learning_rate, kl)
            if settings.kl_stop is not None and kl > settings.kl_stop:
                break
        self._flat.check_gradient()
        self.samples = samples
        self.seconds["learn"] = time.perf_counter() - started - self.seconds["communicate"]
        return {
            **statistics.metrics(),
            "update/explained_variance": explained_variance,
            "update/learning_rate": learning_rate,
            "update/clip_range": clip_range,
            "update/gae_lambda": scheduled.gae_lambda,
        }

    def no_update(self) -> dict[str, float | None]:
        """Return the metrics of a rollout without an update."""
        self.seconds, self.samples = {"learn": 0.0, "communicate": 0.0}, None
        statistics = UpdateStatistics(TERMS, self._noise_scale)
        return {
            **statistics.metrics(),
            **dict.fromkeys(("update/explained_variance", *(f"update/{field.name}" for field in fields(Scheduled)))),
        }

    @property
    def how_gradients_are_summed(self) -> str:
        """How gradients are summed, in a few words for the log."""
        if self.is_one_replica:
            return "in shared memory"
        return "in shared memory within hosts, by MPI between hosts" if self.shares_memory else "by MPI"

    def close(self) -> None:
        """Disconnect from the other ranks; called by all of them together."""
        self._gradient_sum.close()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the optimiser's moments and step count, the adaptive learning rate and running statistics."""
        return {
            **self._optimizer.state_dict(),
            **self._schedules.state_dict(),
            **self.rewards.state_dict(),
            **self._noise_scale.state_dict(),
        }

    def replicated_state(self) -> dict[str, Tensor]:
        """Return the part of `state_dict` of which every rank has a copy, leaving out moments that all ranks share."""
        state = self.state_dict()
        return {name: t for name, t in state.items() if not (self.is_one_replica and name in Adam.MOMENTS)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`.

        Raises:
            ValueError: the moments belong to a network of another size.
        """
        self._optimizer.load_state_dict(state)
        self._schedules.load_state_dict(state)
        self.rewards.load_state_dict(state)
        self._noise_scale.load_state_dict(state)

    @torch.no_grad()
    def _revalued(self, rollout: Rollout) -> Rollout:
        """Return a rollout with values predicted by the current network."""

        def raw_values(observations: Tensor) -> Tensor:
            values: Tensor = self._model(observations).values
            return self._value_normalizer.denormalize(values)

        indices = torch.arange(rollout.rewards.numel(), device=self._device)
        parts = torch.split(indices, _MAX_SAMPLES_AT_ONCE)
        values = torch.cat([raw_values(rollout.observations_at(part)) for part in parts]).view_as(rollout.values)
        at_ends = torch.zeros_like(values)
        if rollout.cuts:
            steps, environments, observations = zip(*rollout.cuts, strict=True)
            at_ends[list(steps), list(environments)] = raw_values(torch.stack(observations))
        next_values = following_values(rollout, values, raw_values(rollout.last_observations), at_ends)
        return replace(rollout, values=values, next_values=next_values)

    def _add_gradients(self, rollout: Rollout, index: Tensor, samples: Samples, clip_range: float) -> list[Prediction]:
        """Compute this rank's gradient of a minibatch, part by part; return the prediction for each part.

        Args:
            rollout: holds the observations.
            index: flat indices of the samples in the rollout, (B,).
            samples: the minibatch, (B,).
            clip_range: clip range of the ratios.
        """
        self._flat.start_gradient()
        at_once = _MAX_SAMPLES_AT_ONCE if self._device.type == "cpu" else _MAX_SAMPLES_AT_ONCE_ON_A_GPU
        if len(index) <= at_once:
            return [self._add_gradient(rollout, index, samples, clip_range)]
        parts = zip(*(torch.split(numbers, at_once) for numbers in (index, *samples)), strict=True)
        return [self._add_gradient(rollout, part[0], Samples(*part[1:]), clip_range) for part in parts]

    def _add_gradient(self, rollout: Rollout, index: Tensor, samples: Samples, clip_range: float) -> Prediction:
        """Do what `_accumulate` does, on a GPU by replaying the recorded kernels."""
        if self._device.type != "cuda":
            return self._accumulate(rollout, index, samples, clip_range)

        def accumulate(index: Tensor, *numbers: Tensor) -> Prediction:
            *samples, clip_range = numbers
            return self._accumulate(rollout, index, Samples(*samples), clip_range)

        if self._graphs_read != rollout.observations.data_ptr():
            self._graphs.clear()
            self._graphs_read = rollout.observations.data_ptr()
        inputs = (index, *samples, torch.full((), clip_range, device=self._device))
        if len(index) not in self._graphs:
            before = self._flat.buffer.clone()
            self._graphs[len(index)] = CUDAGraph(accumulate, inputs)
            self._flat.buffer.copy_(before)
        return Prediction(*(numbers.clone() for numbers in self._graphs[len(index)](*inputs)))

    def _accumulate(self, rollout: Rollout, index: Tensor, samples: Samples, clip_range: float | Tensor) -> Prediction:
        """Add the gradient of samples, divided by the job's minibatch size; return the prediction, detached.

        Args:
            rollout: holds the observations.
            index: flat indices of the samples in the rollout, (B,).
            samples: the samples, (B,).
            clip_range: clip range of the ratios; () if it is a tensor.
        """
        prediction = self._network(rollout.observations_at(index))
        loss = ppo_loss(prediction, samples, self._model.distribution, self._settings, clip_range)
        # Given an initial gradient instead of this division, backward() would import SymPy to compare shapes.
        (loss / self._settings.minibatch_size).backward()  # type: ignore[no-untyped-call]
        if self._bare is not None:
            self._bare.add_gradients()
        return Prediction(*(numbers.detach() for numbers in prediction))

    def _step(self, rate: float, *, with_noise: bool = True) -> Tensor:
        """Sum the gradient over ranks, clip it and take an Adam step.

        The step is skipped once any gradient of this update was non-finite.

        Returns:
            The gradient's norm before clipping, and the mean over ranks of each rank's squared gradient norm, or 0
            where noise is not measured, (2,), on the device.
        """
        flat = self._flat
        if self._noise_scale.is_measured and with_noise:
            flat.sums[0] = flat.gradient.norm().square() * (self._minibatch_per_share**2 / self._comm.size)
        with self._communicating():
            summed = self._gradient_sum.sum()
        norm = summed[: flat.count].norm()
        gradient = summed[self._shard]
        limit = self._settings.max_gradient_norm or math.inf
        # A NaN on one rank is in the sum on all: every rank comes to the same decision without communication. Reading
        # the norm costs nothing on a CPU, and saves a pass over the gradient.
        if self._device.type == "cpu":
            length = norm.item()
            if not length < math.inf:
                self._is_not_finite.fill_(1.0)
            elif length > limit:
                gradient = torch.mul(gradient, limit / length, out=flat.gradient[self._shard])
        else:
            self._is_not_finite.masked_fill_(~(norm < math.inf), 1.0)
            if limit < math.inf:
                factor = (limit / norm.double()).clamp_max(1.0)
                gradient = torch.mul(gradient, factor, out=flat.gradient[self._shard])
        self._optimizer.step(flat.values, gradient, rate, unless=self._is_not_finite, shard=self._shard)
        if self.shares_memory:
            with self._communicating():
                self._neighbours.barrier()  # until the other shards are updated too
        return torch.cat([norm.view(1), summed[flat.count :]])

    @torch.no_grad()
    def _read(
        self, steps: list[Tensor], predictions: list[Prediction], minibatches: Samples, clip_range: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Wait for the device at the end of an epoch of K minibatches and read the results.

        Args:
            steps: the results of `_step`.
            predictions: this rank's predictions, one for each part of a minibatch, in order.
            minibatches: the samples that they belong to, (K, B).
            clip_range: clip range of the ratios.

        Returns:
            The results of `_step`, (K, 2), and the sums over minibatches of the loss's terms, each a mean over the
            minibatch of the whole job.
        """
        prediction = Prediction(*(torch.cat(parts) for parts in zip(*predictions, strict=True)))
        samples = Samples(*(numbers.flatten(0, 1) for numbers in minibatches))
        terms = loss_terms(prediction, samples, self._model.distribution, self._settings, clip_range)
        own_sums = torch.stack([terms[name].sum(dtype=torch.float64) for name in TERMS])
        numbers = torch.cat([torch.cat(steps).double(), own_sums]).cpu().numpy()
        of_steps, of_terms = numbers[: -len(TERMS)].reshape(len(steps), -1), numbers[-len(TERMS) :]
        of_terms /= self._settings.minibatch_size
        with self._communicating():
            self._comm.sum_in_place(of_terms)
        return of_steps, of_terms

    def _moments(self, samples: Tensor) -> Moments:
        with self._communicating():
            return moments_over_ranks(samples, self._comm)

    @contextlib.contextmanager
    def _communicating(self) -> Iterator[None]:
        """Count the time of the block as communication."""
        started = time.perf_counter()
        yield
        self.seconds["communicate"] += time.perf_counter() - started
