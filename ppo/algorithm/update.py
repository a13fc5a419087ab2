"""The update: several epochs of minibatch gradient steps on one rollout, summed over ranks.

All parameters are views into one flat vector and all gradients into another, so a minibatch costs one all-reduce and
one optimiser kernel. The sums a log needs ride at the end of the gradient vector.

All of it happens on the model's device, which is not waited for until the end of an epoch: what is not finite keeps the
optimiser still without anybody looking. A GPU is given the kernels of a gradient as one CUDA graph.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ppo.algorithm import equations
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
from ppo.algorithm.rollout import Rollout
from ppo.collectives import Collective, Halt, share
from ppo.config import MachineSettings, PPOSettings
from ppo.models import distributions
from ppo.models.actor_critic import ActorCritic
from ppo.random_streams import Purpose, stream

_LOGGED = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
# Behind what is logged: the mean over ranks of the square of each one's own gradient.
_SUMS = (*_LOGGED, "squared_gradient_of_a_rank")

# The pixels of every 64th step give their mean and deviation to far more digits than matter.
_STEPS_PER_PIXEL_SAMPLE = 64

# Activations of more samples than this fall out of the cache; larger shares are accumulated in parts.
_MAX_SAMPLES_AT_ONCE = 256
# On a GPU they need only fit into its memory: the largest network has 6 MB for a sample, and a last part of another
# size has memory of its own.
_MAX_SAMPLES_AT_ONCE_ON_A_GPU = 1024


@dataclass(frozen=True)
class _Batch:
    """What the epochs of one update share; all but the rollout flattened to (T * N,).

    All but the advantages lies where it lay in the update before, if the rollout does.
    """

    rollout: Rollout
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    returns: Tensor
    advantages: Tensor

    def addresses(self) -> tuple[int, ...]:
        """Return the addresses of what a minibatch is gathered from by index."""
        gathered = (self.rollout.observations, self.actions, self.log_probs, self.values, self.returns)
        return tuple(tensor.data_ptr() for tensor in gathered)


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
        shared = share_memory(machine, comm, count, len(_SUMS)) if self._device.type == "cpu" else None
        # What all ranks share each of them fills with the same weights, here and when a checkpoint is loaded.
        memory = (None, None) if shared is None else (shared.gradients[comm.rank], shared.parameters)
        self._flat = FlatParameters(model, len(_SUMS), *memory)
        self._gradient_sum = make_device_sum(
            machine, comm, self._flat.exchanged, list(model.parameters()), meeting_host=meeting_host, shared=shared
        )
        self._optimizer = Adam(count, settings.adam_epsilon, self._device, None if shared is None else shared.moments)
        self.shares_memory = shared is not None
        """Whether the ranks share weights, moments and gradients, and each moves a piece of them."""
        self._moved = piece_of(count, comm) if self.shares_memory else slice(count)
        self._adaptive_rate = settings.learning_rate
        steps = settings.minibatch_size // settings.num_envs
        shares = [len(share(settings.num_envs, rank, comm.size)) * steps for rank in range(comm.size)]
        self._growth = sum(shares) / shares[comm.rank]
        # With buckets, a rank's own gradient is never there as a whole.
        self._noise_scale = GradientNoiseScale(shares if machine.gradient_buckets == 1 else [sum(shares)])
        self._pixel_moments = RunningMoments()
        self._values_and_returns = torch.empty(0, device=self._device)
        # By the number of samples.
        self._graphs: dict[int, CUDAGraph] = {}
        self._graphs_read: tuple[int, ...] = ()
        # 1 once something of this update was not finite.
        self._broken = torch.zeros((), device=self._device)
        self.seconds = {"learn": 0.0, "communicate": 0.0}

    def update(self, rollout: Rollout, *, update: int, progress: float) -> dict[str, float | None]:
        """Improve the policy with one rollout.

        Args:
            rollout: this rank's experience.
            update: number of the update, the address of the shuffles.
            progress: env_steps so far / env_steps of the whole run, for the schedules.

        Returns:
            Metrics of the whole job, equal on all ranks.

        Raises:
            Halt: a loss or the gradient is not finite; on all ranks at the same step, which has changed no weight.
        """
        started = time.perf_counter()
        self.seconds = {"learn": 0.0, "communicate": 0.0}
        settings = self._settings
        clip_range = settings.clip_range
        if settings.clip_range_schedule == "linear":
            clip_range = equations.linear_decay(clip_range, progress)
        rate = self._learning_rate(progress)

        batch, explained_variance = self._prepare(rollout)
        at_once = _MAX_SAMPLES_AT_ONCE if self._device.type == "cpu" else _MAX_SAMPLES_AT_ONCE_ON_A_GPU
        sums, count, gradient_norms = np.zeros(len(_LOGGED)), 0, []
        epochs = 0
        self._broken.zero_()
        for epoch in range(settings.num_epochs):
            epoch_sums = np.zeros(len(_LOGGED))
            indices = self.minibatches(update, epoch).to(self._device)
            advantages = self._minibatch_advantages(batch.advantages, indices)
            steps = []
            for index, advantage in zip(indices, advantages, strict=True):
                self._flat.zero_gradient()
                for start in range(0, len(index), at_once):
                    part = slice(start, start + at_once)
                    if part.stop >= len(index):
                        self._gradient_sum.begin()
                    self._add_gradient(batch, index[part], advantage[part], clip_range)
                steps.append(self._step(rate))
            for norm, *of_minibatch in self._read(steps, update):
                gradient_norms.append(norm)
                epoch_sums += of_minibatch[: len(_LOGGED)]
            sums += epoch_sums
            count += len(indices)
            epochs += 1
            kl = float(epoch_sums[_LOGGED.index("approx_kl")]) / len(indices)
            rate = self._steer(rate, kl)
            if settings.kl_stop is not None and kl > settings.kl_stop:
                break
        self._flat.check_views()
        self._follow_pixels(rollout)
        self.seconds["learn"] = time.perf_counter() - started - self.seconds["communicate"]
        return {
            **{f"update/{name}": float(total) / count for name, total in zip(_LOGGED, sums, strict=True)},
            "update/explained_variance": explained_variance,
            "update/learning_rate": rate,
            "update/clip_range": clip_range,
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

    def _steer(self, rate: float, kl: float) -> float:
        """Return the rate for what follows an epoch with this KL."""
        settings = self._settings
        if settings.learning_rate_schedule != "kl_adaptive":
            return rate
        self._adaptive_rate = equations.adapted_learning_rate(
            rate, kl, kl_target=settings.kl_target, factor=settings.kl_factor, maximum=settings.learning_rate_max
        )
        return self._adaptive_rate

    def _prepare(self, rollout: Rollout) -> tuple[_Batch, float]:
        """Turn a rollout into what the epochs need; also return the explained variance of the values."""
        settings = self._settings
        advantages = equations.gae(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.dones,
            discount=settings.discount,
            gae_lambda=settings.gae_lambda,
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
        if self._values_and_returns.shape != (2, len(values)):
            self._values_and_returns = self._values_and_returns.new_empty(2, len(values))
        kept_values, kept_returns = self._values_and_returns
        actions, log_probs = rollout.actions.flatten(), rollout.log_probs.flatten()
        batch = _Batch(rollout, actions, log_probs, kept_values.copy_(values), kept_returns.copy_(returns), advantages)
        return batch, explained

    def _minibatch_advantages(self, advantages: Tensor, indices: Tensor) -> Tensor:
        """Gather the advantages of an epoch's minibatches, (K, B), normalised per minibatch if so set."""
        gathered = advantages[indices]
        if self._settings.advantage_normalization == "minibatch":
            gathered = standardize(gathered, self._timed_moments(gathered))
        return gathered

    def _add_gradient(self, batch: _Batch, index: Tensor, advantages: Tensor, clip_range: float) -> None:
        """Do what `_accumulate` does; on a GPU by the recorded kernels."""
        if self._device.type != "cuda":
            self._accumulate(batch, index, advantages, clip_range)
            return
        if self._graphs_read != batch.addresses():
            self._graphs.clear()
            self._graphs_read = batch.addresses()
        inputs = (index, advantages, torch.full((), clip_range, device=self._device))
        if len(index) not in self._graphs:
            so_far = self._flat.exchanged.clone()
            self._graphs[len(index)] = CUDAGraph(partial(self._accumulate, batch), inputs)
            self._flat.exchanged.copy_(so_far)
        self._graphs[len(index)](*inputs)

    def _accumulate(self, batch: _Batch, index: Tensor, advantages: Tensor, clip_range: float | Tensor) -> tuple[()]:
        """Add the gradient of samples, divided by the job's minibatch size.

        Args:
            batch: what they are samples of.
            index: their places in it, (B,).
            advantages: theirs, (B,).
            clip_range: of the ratios; () if it is a tensor.
        """
        settings = self._settings
        logits, values = self._model(batch.rollout.observations_at(index))
        with torch.no_grad():
            actions, old_values, returns = batch.actions[index], batch.values[index], batch.returns[index]
            log_probs = distributions.log_probabilities(logits)
            log_ratios = distributions.log_prob(log_probs, actions) - batch.log_probs[index]
            sums = torch.stack(
                [
                    equations.clipped_surrogate_loss(log_ratios, advantages, clip_range).sum(),
                    equations.value_loss(values, old_values, returns, settings.value_clip_range).sum(),
                    distributions.entropy(log_probs).sum(),
                    equations.approximate_kl(log_ratios).sum(),
                    equations.clipped(log_ratios, clip_range).sum(),
                ]
            )
            self._flat.sums[: len(_LOGGED)].add_(sums, alpha=1.0 / settings.minibatch_size)

            # The loss is policy_loss + value_coefficient * value_loss - entropy_coefficient * entropy.
            by_log_ratios = equations.clipped_surrogate_derivative(log_ratios, advantages, clip_range)
            by_logits = distributions.log_prob_derivative(log_probs, actions, by_log_ratios)
            by_logits.add_(distributions.entropy_derivative(log_probs), alpha=-settings.entropy_coefficient)
            by_values = equations.value_loss_derivative(values, old_values, returns, settings.value_clip_range)
            derivatives = (
                by_logits.div_(settings.minibatch_size),
                by_values * (settings.value_coefficient / settings.minibatch_size),
            )
        torch.autograd.backward((logits, values), derivatives)
        return ()

    def _step(self, rate: float) -> Tensor:
        """Sum the gradient over ranks, clip it and take an Adam step, unless something is not finite now or was before.

        Returns:
            The gradient's norm before clipping and the sums, (1 + S,), on the device.
        """
        flat = self._flat
        if self._noise_scale.is_measured:
            own = self._growth * flat.gradient.norm().double()
            flat.sums[-1] = own * own / self._comm.size
        with self._communicating():
            summed = self._gradient_sum.finish()
        norm = summed[: flat.count].norm()
        numbers = torch.cat([norm.view(1), summed[flat.count :]])
        # A NaN of one rank is in everybody's sum: all ranks come to the same decision without asking each other.
        self._broken = torch.maximum(self._broken, (~numbers.isfinite()).any())
        moved = self._moved
        gradient = summed[moved]
        if self._settings.max_gradient_norm is not None:
            factor = (self._settings.max_gradient_norm / norm.double()).clamp_max(1.0)
            # Where looking costs no time, a pass over the gradient is saved.
            if self._device.type != "cpu" or factor < 1.0:
                gradient = torch.mul(gradient, factor, out=flat.gradient[moved])
        self._optimizer.step(flat.values, gradient, rate, self._broken, moved)
        if self.shares_memory:
            with self._communicating():
                self._comm.barrier()  # until the others' pieces have been moved too
        return numbers

    def _read(self, steps: list[Tensor], update: int) -> list[list[float]]:
        """Wait for the device and return what `_step` did; see `update` for the error."""
        rows: list[list[float]] = torch.stack(steps).cpu().tolist()
        for norm, *sums in rows:
            if not np.isfinite([norm, *sums]).all():
                listing = ", ".join(f"{name} {total:g}" for name, total in zip(_SUMS, sums, strict=True))
                raise Halt(
                    f"the loss or the gradient of update {update + 1} is not finite (gradient norm {norm:g}, "
                    f"{listing}); no weight was changed by it and the last checkpoint stands. A lower "
                    "--learning_rate may help"
                )
            if self._noise_scale.is_measured:
                self._noise_scale.observe(sums[-1], norm * norm)
        return rows

    def _follow_pixels(self, rollout: Rollout) -> None:
        """Let the network centre pixels by all it has seen; between updates, so that no ratio is moved by it."""
        layer = self._model.pixel_layer
        if self._settings.pixel_normalization and layer is not None:
            pixels = rollout.observations[::_STEPS_PER_PIXEL_SAMPLE]
            first, second = pixels.sum(dtype=torch.int64), pixels.to(torch.int32).square().sum(dtype=torch.int64)
            sums = np.array([pixels.numel(), *torch.stack([first, second]).cpu().tolist()], np.float64)
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
