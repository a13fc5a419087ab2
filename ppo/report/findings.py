"""Findings: sentences about what is unusual in a run's curves."""

import numpy as np
from numpy.typing import NDArray

from ppo.report.logs import PHASES, Columns

_LAST = 10
"""A curve's final value is the mean of its last tenth."""
_LEAST_ROWS = 20
_HIGH_KL, _HIGH_CLIP_FRACTION, _LOW_EXPLAINED_VARIANCE = 0.05, 0.3, 0.0
_SMALL_SHARE_OF_ENTROPY, _EARLY = 0.02, 0.5
_LARGE_SHARE, _SLOWER, _FALLEN = 0.25, 0.6, 0.7


def findings(curves: Columns) -> list[str]:
    """Return one sentence for each unusual thing in a run's curves."""
    if not curves or len(curves["env_steps"]) < _LEAST_ROWS:
        return []
    rules = (_update_size, _values, _entropy, _return, _speed, _time)
    return [sentence for rule in rules for sentence in rule(curves)]


def _known(curves: Columns, name: str) -> NDArray[np.float64]:
    column = curves[name]
    return column[~np.isnan(column)]


def _end(values: NDArray[np.float64]) -> float:
    return float(values[-max(1, len(values) // _LAST) :].mean())


def _update_size(curves: Columns) -> list[str]:
    found = []
    divergence, clipped = _known(curves, "update/approx_kl"), _known(curves, "update/clip_fraction")
    if len(divergence) and _end(divergence) > _HIGH_KL:
        found.append(
            f"The policy still changes a lot in each update (KL {_end(divergence):.2g}; 0.003 to 0.03 is usual). A "
            "smaller learning rate or fewer epochs make steadier progress."
        )
    if len(clipped) and _end(clipped) > _HIGH_CLIP_FRACTION:
        found.append(
            f"{_end(clipped):.0%} of the samples hit the clip range at the end (5 to 20 % is usual): the steps are "
            "larger than PPO trusts. Try a smaller learning rate or fewer epochs."
        )
    return found


def _values(curves: Columns) -> list[str]:
    explained = _known(curves, "update/explained_variance")
    if len(explained) and _end(explained) < _LOW_EXPLAINED_VARIANCE:
        return [
            "At the end, the values explain none of the variance of the returns (explained variance "
            f"{_end(explained):.2f}; 1 is perfect): advantages are mostly noise. Try value or reward normalisation, or "
            "a larger network."
        ]
    return []


def _entropy(curves: Columns) -> list[str]:
    entropy = _known(curves, "update/entropy")
    if not len(entropy) or entropy[0] <= 0.0:  # differential entropy may be negative: shares of it mean nothing
        return []
    gone = np.flatnonzero(entropy < _SMALL_SHARE_OF_ENTROPY * entropy[0])
    if len(gone) and gone[0] < _EARLY * len(entropy):
        return [
            f"The policy had nearly no randomness left after {gone[0] / len(entropy):.0%} of the run, so it "
            "stopped exploring. A larger entropy_coefficient keeps it exploring."
        ]
    return []


def _return(curves: Columns) -> list[str]:
    returns = _known(curves, "rollout/return_mean")
    if len(returns) < _LEAST_ROWS:
        return []
    best, spread = float(returns.max()), float(returns.max() - returns.min())
    if spread > 0.0 and _end(returns) < returns.min() + _FALLEN * spread:
        return [
            f"The return ended at {_end(returns):.4g}, well below its best of {best:.4g}. --checkpoint=best plays the "
            "best checkpoint kept; a decaying learning rate often prevents such a drop."
        ]
    return []


def _speed(curves: Columns) -> list[str]:
    speed = _known(curves, "time/steps_per_second")
    tenth = max(1, len(speed) // _LAST)
    before = float(np.median(speed[tenth : 3 * tenth])) if len(speed) >= _LEAST_ROWS else 0.0
    if before and _end(speed) < _SLOWER * before:
        return [
            f"The run slowed down: {_end(speed):,.0f} steps per second at the end, {before:,.0f} near the beginning. "
            "Another program may be using its cores, or the environment may have become slower to step."
        ]
    return []


def _time(curves: Columns) -> list[str]:
    spent = {phase: float(np.nansum(curves[f"time/{phase}"])) for phase in PHASES}
    total = sum(spent.values())
    names = {
        "communicate": "exchanging gradients between ranks",
        "save": "saving checkpoints",
        "evaluation": "evaluations",
    }
    advice = {
        "communicate": "Fewer ranks with more environments each, or larger minibatches, exchange less.",
        "save": "A larger checkpoint_interval saves less often.",
        "evaluation": "A larger evaluation_interval evaluates less often.",
    }
    return [
        f"{spent[phase] / total:.0%} of the time went into {name}. {advice[phase]}"
        for phase, name in names.items()
        if total > 0.0 and spent[phase] > _LARGE_SHARE * total
    ]
