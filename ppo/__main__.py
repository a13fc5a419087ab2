"""`python -m ppo`: flags -> Config -> mode. Ends the whole job if one rank fails.

Exit codes: 0 done; 2 a setting was refused; 75 saved and left on SIGUSR1 or SIGTERM; 130 on Ctrl-C; 1 anything else.
"""

import os
import sys
import time
from collections.abc import Sequence

# One thread per rank: the ranks share the cores out among themselves. Read by the libraries when they are imported.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from ppo.collectives import AbortGuard, Collective, connect, launched_rank
from ppo.config import Config, Refusal, explicit_settings, parse_command_line
from ppo.presets import PRESETS, default_preset

REFUSED = 2
# A rank that ended first would make the launcher stop rank 0 before it has said why.
_SECONDS_FOR_ROOT_TO_SPEAK = 5.0


def main(arguments: Sequence[str]) -> int:
    """Run one invocation and return its exit code."""
    speaks = launched_rank() == 0
    try:
        config = parse_command_line(arguments, PRESETS, default_preset, speak=speaks)
        explicit = explicit_settings(arguments)
        if config.run.mode == "train" or "env_name" in explicit:
            from ppo.envs import check_environment

            check_environment(config.run.env_name, explicit)
        collective = connect()
    except Refusal as refusal:
        return _refuse(refusal, speaks)
    except SystemExit as leave:  # tyro has printed its help, or what is wrong with a flag
        return _leave(leave.code if isinstance(leave.code, int) else REFUSED, speaks)
    with AbortGuard(collective, lambda: f"in --mode={config.run.mode}"):
        try:
            if config.run.mode == "train" and collective.size > config.ppo.num_envs:
                raise Refusal(
                    f"num_envs must be at least the number of ranks, got {config.ppo.num_envs} environments for "
                    f"{collective.size} ranks; try -np {config.ppo.num_envs} or --num_envs={collective.size}"
                )
            return run_mode(config, collective, explicit)
        except Refusal as refusal:
            if collective.rank == 0:
                print(f"ppo: {refusal}", file=sys.stderr, flush=True)
            collective.barrier()
            return REFUSED


def run_mode(config: Config, collective: Collective, explicit: set[str]) -> int:
    """Import and run the chosen mode."""
    import torch

    torch.set_num_threads(1)
    if config.run.mode == "train":
        from ppo.supervision import StopRequest
        from ppo.train import train

        return train(config, collective, StopRequest())
    from ppo import evaluate

    modes = {"play": evaluate.play, "record": evaluate.record, "evaluate": evaluate.evaluate}
    return modes[config.run.mode](config, collective, explicit)


def _refuse(refusal: Refusal, speaks: bool) -> int:
    if speaks:
        print(f"ppo: {refusal}", file=sys.stderr, flush=True)
    return _leave(REFUSED, speaks)


def _leave(code: int, speaks: bool) -> int:
    if code and not speaks:
        time.sleep(_SECONDS_FOR_ROOT_TO_SPEAK)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
