"""The update: several epochs of minibatch gradient steps on one rollout, summed over ranks.

All parameters are views into one flat vector and all gradients go to another, so a minibatch costs one all-reduce and
one optimiser kernel. What a log needs is summed once per epoch.

All of it happens on the model's device, which is not waited for until the end of an epoch: what is not finite keeps the
optimiser still without anybody looking. A GPU is given the kernels of a gradient as one CUDA graph.
"""

import contextlib
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ppo.algorithm import equations, objective
from ppo.algorithm.adam import Adam
from ppo.algorithm.cuda_graph import CUDAGraph
from ppo.algorithm.device_sum import make_device_sum
from ppo.algorithm.flat_parameters import FlatParameters, num_parameters
from ppo.algorithm.gradient_sum import piece_of, share_memory
from ppo.algorithm.noise_scale import GradientNoiseScale
from ppo.algorithm.normalization import (
    Moments,
    RunningMoments,
    moments_of_integers,
    moments_over_ranks,
    standardize,
)
from ppo.algorithm.objective import LOGGED, Samples
from ppo.algorithm.rollout import Rollout
from ppo.collectives import Collective, Halt, share
from ppo.config import MachineSettings, PPOSettings
from ppo.models.actor_critic import ActorCritic
from ppo.random_streams import Purpose, stream

# Behind the gradient: the mean over ranks of the square of each one's own.
_NUM_SUMS = 1

# The pixels of every 64th step give their mean and deviation to far more digits than matter.
_STEPS_PER_PIXEL_SAMPLE = 64

# The norm of a rank's own gradient is a pass over it that nothing else needs.
_STEPS_PER_NOISE_SAMPLE = 4

# Activations of more samples than this fall out of the cache; larger shares are accumulated in parts.
_MAX_SAMPLES_AT_ONCE = 256
# On a GPU they need only fit into its memory: the largest network has 6 MB for a sample, and a last part of another
# size has memory of its own.
_MAX_SAMPLES_AT_ONCE_ON_A_GPU = 1024


class Learner:
    """Owns the optimiser, the value normaliser and the learning rate; improves the model in place."""

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
        """Prepare to update `model`, on the device where it is.

        Args:
            model: its parameters become views into one vector.
            value_normalizer: shared with the collector; updated here if the settings say so.
            settings: sizes for the whole job.
            comm: the ranks to sum gradients over.
            machine: how to sum them.
            indices: global indices of this rank's environments, the addresses of their shuffles.
            seed: seed of the job.
            meeting_host: where the ranks find each other if each has a GPU of its own and these sum the gradients.
        """
        self._model, self._value_normalizer = model, value_normalizer
        self._settings, self._comm = settings, comm
        self._indices, self._seed = indices, seed
        self._device = model.device
        count = num_parameters(model)
        shared = share_memory(machine, comm, count, _NUM_SUMS) if self._device.type == "cpu" else None
        self.shares_memory = shared is not None
        """Whether the ranks of a host share weights, moments and gradients, and each moves a piece of them."""
        self.is_one_replica = shared is not None and shared.hosts.count == 1
        """Whether all ranks of the job share them."""
        self._neighbours = comm if shared is None else shared.hosts.within
        exchanged = None if shared is None else shared.gradients[self._neighbours.rank]
        # What ranks share each of them fills, here and when a checkpoint is loaded: all with the same, and all meet
        # before anyone moves a weight.
        weights = None if shared is None else shared.parameters
        self._flat = FlatParameters(model, _NUM_SUMS, exchanged, weights)
        self._gradient_sum = make_device_sum(
            machine, comm, self._flat.exchanged, list(model.parameters()), meeting_host=meeting_host, shared=shared
        )
        self._optimizer = Adam(count, settings.adam_epsilon, self._device, None if shared is None else shared.moments)
        self._piece = slice(count) if shared is None else piece_of(count, self._neighbours)
        self._adaptive_rate = settings.learning_rate
        steps = settings.minibatch_size // settings.num_envs
        shares = [len(share(settings.num_envs, rank, comm.size)) * steps for rank in range(comm.size)]
        self._growth = sum(shares) / shares[comm.rank]
        # With buckets, a rank's own gradient is never there as a whole.
        self._noise_scale = GradientNoiseScale(shares if machine.gradient_buckets == 1 else [sum(shares)])
        self._pixel_moments = RunningMoments()
        # By the number of samples; they read the observations at one place in memory.
        self._graphs: dict[int, CUDAGraph] = {}
        self._graphs_read = 0
        # 1 once something of this update was not finite.
        self._broken = torch.zeros((), device=self._device)
        self.seconds = {"learn": 0.0, "communicate": 0.0}

    def update(self, rollout: Rollout, *, update: int, env_steps: int, progress: float) -> dict[str, float | None]:
        """Improve the policy with one rollout.

        Args:
            rollout: this rank's experience.
            update: number of the update, the address of the shuffles.
            env_steps: agent steps of the job before the rollout, for lambda: what values know depends on them, and not
                on where the run shall end.
            progress: env_steps / those of the whole run, for the linear schedules.

        Returns:
            Metrics of the whole job, equal on all ranks.

        Raises:
            Halt: a loss or the gradient is not finite; on all ranks after the same epoch. No weight has been changed by
                a gradient that is not finite, nor since.
        """
        started = time.perf_counter()
        self.seconds = {"learn": 0.0, "communicate": 0.0}
        settings = self._settings
        clip_range = settings.clip_range
        if settings.clip_range_schedule == "linear":
            clip_range = equations.linear_decay(clip_range, progress)
        rate = self._learning_rate(progress)

        gae_lambda = self._gae_lambda(env_steps)
        samples, explained_variance = self._prepare(rollout, gae_lambda=gae_lambda)
        sums, count, gradient_norms = np.zeros(len(LOGGED)), 0, []
        epochs = 0
        self._broken.zero_()
        for epoch in range(settings.num_epochs):
            indices = self.minibatches(update, epoch).to(self._device)
            minibatches = self._gather(samples, indices)
            steps, outputs = [], []
            for number, (index, *minibatch) in enumerate(zip(indices, *minibatches, strict=True)):
                outputs += self._add_gradients(rollout, index, Samples(*minibatch), clip_range)
                steps.append(self._step(rate, measures_noise=_measures_noise(number)))
            norms, epoch_sums = self._read(steps, outputs, minibatches.flatten(), clip_range, update)
            gradient_norms += norms
            sums += epoch_sums
            count += len(indices)
            epochs += 1
            kl = float(epoch_sums[LOGGED.index("approx_kl")]) / len(indices)
            rate = self._steer(rate, kl)
            if settings.kl_stop is not None and kl > settings.kl_stop:
                break
        self._flat.check_gradient()
        self._follow_pixels(rollout)
        self.seconds["learn"] = time.perf_counter() - started - self.seconds["communicate"]
        return {
            **{f"update/{name}": float(total) / count for name, total in zip(LOGGED, sums, strict=True)},
            "update/explained_variance": explained_variance,
            "update/learning_rate": rate,
            "update/clip_range": clip_range,
            "update/gae_lambda": gae_lambda,
            "update/grad_norm": float(np.mean(gradient_norms)),
            "update/noise_scale": self._noise_scale.value,
            "update/epochs": epochs,
        }

    def minibatches(self, update: int, epoch: int) -> Tensor:
        """Return this rank's flat step indices t * N + n of every minibatch, (K, B).

        Each environment's steps are shuffled by their own stream, and minibatch k takes the k-th share of every
        environment: a minibatch of the job holds the same steps at any rank count.
        """
        steps, num_local = self._settings.rollout_steps, len(self._indices)
        share = self._settings.minibatch_size // self._settings.num_envs
        orders = np.stack(
            [stream(self._seed, Purpose.SHUFFLE, i, update, epoch).permutation(steps) for i in self._indices]
        )
        flat = orders * num_local + np.arange(num_local)[:, None]
        shares = flat.reshape(num_local, steps // share, share).transpose(1, 0, 2)
        return torch.from_numpy(shares.reshape(steps // share, num_local * share))

    @property
    def how_gradients_are_summed(self) -> str:
        """In a few words, for the log."""
        if self.is_one_replica:
            return "in shared memory"
        return "in shared memory within hosts, by MPI between them" if self.shares_memory else "by MPI"

    def close(self) -> None:
        """Part from the other ranks; by all of them together."""
        self._gradient_sum.close()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the optimiser's moments and step count, the adaptive learning rate and running statistics."""
        return {
            **self._optimizer.state_dict(),
            "adaptive_rate": torch.tensor(self._adaptive_rate, dtype=torch.float64),
            "pixel_moments": self._pixel_moments.state_dict()["moments"],
            **self._noise_scale.state_dict(),
        }

    def replicated_state(self) -> dict[str, Tensor]:
        """Return of the `state_dict` what every rank has a copy of: what all of them share is there once."""
        state = self.state_dict()
        return {name: t for name, t in state.items() if not (self.is_one_replica and name in Adam.MOMENTS)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`.

        Raises:
            ValueError: the moments belong to a network of another size.
        """
        self._optimizer.load_state_dict(state)
        self._adaptive_rate = min(float(state["adaptive_rate"]), self._settings.learning_rate_max)
        self._pixel_moments.load_state_dict({"moments": state["pixel_moments"]})
        self._noise_scale.load_state_dict(state)

    def _learning_rate(self, progress: float) -> float:
        settings = self._settings
        if settings.learning_rate_schedule == "linear":
            return equations.linear_decay(settings.learning_rate, progress)
        if settings.learning_rate_schedule == "kl_adaptive":
            return self._adaptive_rate
        return settings.learning_rate

    def _gae_lambda(self, env_steps: int) -> float:
        settings = self._settings
        if settings.gae_lambda_late is None:
            return settings.gae_lambda
        return equations.scheduled_lambda(
            env_steps,
            early=settings.gae_lambda,
            late=settings.gae_lambda_late,
            late_steps=settings.gae_lambda_late_steps,
        )

    def _steer(self, rate: float, kl: float) -> float:
        """Return the rate for what follows an epoch with this KL."""
        settings = self._settings
        if settings.learning_rate_schedule != "kl_adaptive":
            return rate
        self._adaptive_rate = equations.adapted_learning_rate(
            rate, kl, kl_target=settings.kl_target, factor=settings.kl_factor, maximum=settings.learning_rate_max
        )
        return self._adaptive_rate

    def _prepare(self, rollout: Rollout, *, gae_lambda: float) -> tuple[Samples, float]:
        """Turn a rollout into flat samples, (T * N,); also return what share of the returns' variance values explain.

        Returns are those of this lambda, and so is the share.
        """
        settings = self._settings
        advantages = equations.gae(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.dones,
            discount=settings.discount,
            gae_lambda=gae_lambda,
        ).flatten()
        values = rollout.values.flatten()
        returns = advantages + values
        # The residual of the prediction is the advantage, so two rows of moments serve everything below.
        both = self._timed_moments(torch.stack([returns, advantages]))
        returns_moments, advantage_moments = (
            Moments(both.count[row], both.mean[row], both.squares[row]) for row in (0, 1)
        )
        variance = float(returns_moments.squares)
        explained = 1.0 - float(advantage_moments.squares) / variance if variance > 0.0 else 0.0
        if settings.value_normalization:
            # What the value head said, in the units it said it in: the reference of value clipping.
            values = self._value_normalizer.normalize(values)
            self._value_normalizer.update(returns_moments)
            returns = self._value_normalizer.normalize(returns)
        if settings.advantage_normalization == "batch":
            advantages = standardize(advantages, advantage_moments)
        return Samples(rollout.actions.flatten(), rollout.log_probs.flatten(), values, returns, advantages), explained

    def _gather(self, samples: Samples, indices: Tensor) -> Samples:
        """Gather the samples of an epoch's minibatches, (K, B), advantages normalised per minibatch if so set."""
        minibatches = samples.at(indices)
        if self._settings.advantage_normalization == "minibatch":
            moments = self._timed_moments(minibatches.advantages)
            minibatches = minibatches._replace(advantages=standardize(minibatches.advantages, moments))
        return minibatches

    def _add_gradients(
        self, rollout: Rollout, index: Tensor, samples: Samples, clip_range: float
    ) -> list[tuple[Tensor, ...]]:
        """Make this rank's gradient of a minibatch, part by part; return what the network said in each.

        Args:
            rollout: where the observations are.
            index: the places of the samples in it, (B,).
            samples: they, (B,).
            clip_range: of the ratios.
        """
        self._flat.start_gradient()
        at_once = _MAX_SAMPLES_AT_ONCE if self._device.type == "cpu" else _MAX_SAMPLES_AT_ONCE_ON_A_GPU
        parts = list(zip(*(torch.split(numbers, at_once) for numbers in (index, *samples)), strict=True))
        outputs = []
        for number, part in enumerate(parts, 1):
            if number == len(parts):
                self._gradient_sum.begin()
            outputs.append(self._add_gradient(rollout, part[0], Samples(*part[1:]), clip_range))
        return outputs

    def _add_gradient(self, rollout: Rollout, index: Tensor, samples: Samples, clip_range: float) -> tuple[Tensor, ...]:
        """Do what `_accumulate` does; on a GPU by the recorded kernels."""
        if self._device.type != "cuda":
            return self._accumulate(rollout, index, samples, clip_range)

        def accumulate(index: Tensor, *numbers: Tensor) -> tuple[Tensor, ...]:
            *samples, clip_range = numbers
            return self._accumulate(rollout, index, Samples(*samples), clip_range)

        if self._graphs_read != rollout.observations.data_ptr():
            self._graphs.clear()
            self._graphs_read = rollout.observations.data_ptr()
        inputs = (index, *samples, torch.full((), clip_range, device=self._device))
        if len(index) not in self._graphs:
            so_far = self._flat.exchanged.clone()
            self._graphs[len(index)] = CUDAGraph(accumulate, inputs)
            self._flat.exchanged.copy_(so_far)
        return tuple(output.clone() for output in self._graphs[len(index)](*inputs))

    def _accumulate(
        self, rollout: Rollout, index: Tensor, samples: Samples, clip_range: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of samples, divided by the job's minibatch size.

        Args:
            rollout: where their observations are.
            index: their places in it, (B,).
            samples: they, (B,).
            clip_range: of the ratios; () if it is a tensor.

        Returns:
            The network's logits (B, A) and values (B,).
        """
        logits, values = self._model(rollout.observations_at(index))
        torch.autograd.backward(objective.stand_in(logits, values, samples, self._settings, clip_range))
        return logits.detach(), values.detach()

    def _step(self, rate: float, *, measures_noise: bool = True) -> Tensor:
        """Sum the gradient over ranks, clip it and take an Adam step, unless something is not finite now or was before.

        Returns:
            The gradient's norm before clipping and the mean over ranks of the square of their own, or 0 where noise is
            not measured, (2,), on the device.
        """
        flat = self._flat
        if self._noise_scale.is_measured and measures_noise:
            flat.sums[0] = flat.gradient.norm().square() * (self._growth**2 / self._comm.size)
        with self._communicating():
            summed = self._gradient_sum.finish()
        norm = summed[: flat.count].norm()
        # A NaN of one rank is in everybody's sum: all ranks come to the same decision without asking each other.
        self._broken.masked_fill_(~(norm < math.inf), 1.0)
        gradient = summed[self._piece]
        limit = self._settings.max_gradient_norm
        # Where looking costs no time, a pass over the gradient is saved.
        if limit is not None and (self._device.type != "cpu" or norm.item() > limit):
            factor = (limit / norm.double()).clamp_max(1.0)
            gradient = torch.mul(gradient, factor, out=flat.gradient[self._piece])
        self._optimizer.step(flat.values, gradient, rate, unless=self._broken, piece=self._piece)
        if self.shares_memory:
            with self._communicating():
                self._neighbours.barrier()  # until their pieces have been moved too
        return torch.cat([norm.view(1), summed[flat.count :]])

    def _read(
        self,
        steps: list[Tensor],
        outputs: list[tuple[Tensor, ...]],
        samples: Samples,
        clip_range: float,
        update: int,
    ) -> tuple[list[float], NDArray[np.float64]]:
        """Wait for the device at the end of an epoch; see `update` for the error.

        Args:
            steps: what `_step` returned of its K minibatches.
            outputs: what the network said of their samples.
            samples: they, (K * B,).
            clip_range: of the ratios.
            update: number of the update.

        Returns:
            The norms of the gradients, and the sums over minibatches of what is LOGGED, each a mean over the minibatch
            of the whole job.
        """
        logits, values = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        own_sums = objective.logged_sums(logits, values, samples, self._settings, clip_range)
        numbers = torch.cat([*steps, own_sums]).double().cpu().numpy()
        of_steps, sums = numbers[: -len(LOGGED)].reshape(len(steps), -1), numbers[-len(LOGGED) :]
        sums /= self._settings.minibatch_size
        with self._communicating():
            self._comm.sum_in_place(sums)
        norms = of_steps[:, 0].tolist()
        if not (np.isfinite(of_steps).all() and np.isfinite(sums).all()):
            norm = next((norm for norm in norms if not math.isfinite(norm)), norms[-1])
            means = zip(LOGGED, sums / len(steps), strict=True)
            raise Halt(
                f"the loss or the gradient of update {update + 1} is not finite (gradient norm {norm:g}, "
                f"{', '.join(f'{name} {mean:g}' for name, mean in means)}); nothing of it was saved and the last "
                "checkpoint stands. A lower --learning_rate may help"
            )
        if self._noise_scale.is_measured:
            for number, (norm, squared_gradient_of_a_rank) in enumerate(of_steps.tolist()):
                if _measures_noise(number):
                    self._noise_scale.observe(squared_gradient_of_a_rank, norm * norm)
        return norms, sums

    def _follow_pixels(self, rollout: Rollout) -> None:
        """Let the network centre pixels by all it has seen; between updates, so that no ratio is moved by it."""
        layer = self._model.pixel_layer
        if self._settings.pixel_normalization and layer is not None:
            pixels = rollout.observations[::_STEPS_PER_PIXEL_SAMPLE]
            sums = np.array([pixels.numel(), *_sums_of_powers(pixels).cpu().tolist()], np.float64)
            with self._communicating():
                moments = moments_of_integers(sums, self._comm)
            self._pixel_moments.update(moments)
            layer.set_pixel_moments(self._pixel_moments.mean, max(self._pixel_moments.deviation, 1.0))

    def _timed_moments(self, samples: Tensor) -> Moments:
        with self._communicating():
            return moments_over_ranks(samples, self._comm)

    @contextlib.contextmanager
    def _communicating(self) -> Iterator[None]:
        """Count what the block takes as communication."""
        started = time.perf_counter()
        yield
        self.seconds["communicate"] += time.perf_counter() - started


def _measures_noise(minibatch: int) -> bool:
    """Tell whether the noise of a minibatch of an epoch is measured."""
    return minibatch % _STEPS_PER_NOISE_SAMPLE == 0


def _sums_of_powers(pixels: Tensor) -> Tensor:
    """Return the sum of uint8 pixels and that of their squares, exactly, (2,) float64."""
    # 255^2 * 256 < 2^24: these rows are added without rounding in float32, in a third of the time of integers.
    rows = pixels.flatten().to(torch.float32)
    rows = functional.pad(rows, (0, -len(rows) % 256)).view(-1, 256)
    return torch.stack([rows.sum(-1), rows.square().sum(-1)]).double().sum(-1)
