"""The program with one fault in it: `python -m tests.faults.faulty <flags of ppo>`.

PPO_FAULT is `<point>:<rank>:<update>:<kind>[:<argument>]`; the fault happens once per process, at the first passage of
the point in that update (counted from 1 in this process). The file `fault-at` gets the time just before.

Points: start (before the handshake), collect (a step of the environments), learn (between backward and all-reduce),
save (between the two files of a checkpoint).
"""

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ppo.__main__ as program
from ppo.collectives.mpi import launched_rank

POINT, RANK, UPDATE, KIND, *ARGUMENT = os.environ.get("PPO_FAULT", "none:0:0:none").split(":")


def hold_the_interpreter_lock() -> None:
    re.match(r"(a|a)*b", "a" * 60)


def fail_in_a_thread() -> None:
    def fail() -> None:
        raise RuntimeError("the helper thread is on fire")

    threading.Thread(target=fail).start()
    time.sleep(60)


def spin() -> None:
    while True:
        time.sleep(0.01)


def fail() -> None:
    raise RuntimeError("the emulator is on fire")


KINDS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "segv": lambda: ctypes.string_at(0),
    "raise": fail,
    "exit0": lambda: sys.exit(0),
    "exit3": lambda: sys.exit(3),
    "os_exit0": lambda: os._exit(0),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "thread": fail_in_a_thread,
    "spin": spin,
    "hold": hold_the_interpreter_lock,
    "sleep": lambda: time.sleep(float(ARGUMENT[0])),
}


class Fault:
    """Happens at a point of an update, on one rank."""

    def __init__(self) -> None:
        self.update = 0
        self.happened = False

    def pass_point(self, point: str) -> bool:
        """Trigger the fault if this is its point; return whether the caller must bring it about."""
        due = point == POINT and launched_rank() == int(RANK) and self.update >= int(UPDATE)
        if not due or (self.happened and KIND != "sleep"):
            return False
        self.happened = True
        Path("fault-at").write_text(repr(time.time()))
        if KIND in KINDS:
            KINDS[KIND]()
            return False
        return True


def plant(fault: Fault) -> None:
    """Install the fault's points in the program."""
    import numpy as np
    import torch

    from ppo.algorithm.rollout import Collector
    from ppo.algorithm.update import Learner
    from ppo.envs import gymnasium
    from ppo.envs.atari import block as atari
    from ppo.outputs import whole_folder

    collect, step_weights, write = Collector.collect, Learner._step, whole_folder._write

    def collect_counting(self, update):
        fault.update += 1
        return collect(self, update)

    def faulty_step(original):
        def step(self, actions):
            result = original(self, actions)
            if fault.pass_point("collect"):
                if KIND == "infinite_reward":
                    result[1][0] = np.inf
                elif KIND == "wrong_shape":
                    return (result[0], result[1][:-1], *result[2:])
            return result

        return step

    def faulty_step_weights(self, rate, **options):
        if fault.pass_point("learn"):
            with torch.no_grad():
                if KIND == "nan":
                    self._flat.gradient[3] = np.nan
                elif KIND == "perturb":
                    self._flat.values[7] += 1e-3
        return step_weights(self, rate, **options)

    def faulty_write(path, content):
        write(path, content)
        if path.name == "model.safetensors":
            fault.pass_point("save")

    Collector.collect = collect_counting
    Learner._step = faulty_step_weights
    whole_folder._write = faulty_write
    atari.AtariEnvironments.step = faulty_step(atari.AtariEnvironments.step)
    gymnasium.GymnasiumEnvironments.step = faulty_step(gymnasium.GymnasiumEnvironments.step)


if __name__ == "__main__":
    planted = Fault()
    if POINT != "none":
        planted.pass_point("start")
        plant(planted)
    sys.exit(program.main(sys.argv[1:]))
