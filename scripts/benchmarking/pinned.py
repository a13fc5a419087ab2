"""Run Python on one core per rank: `mpirun -np 2 python -m scripts.benchmarking.pinned 0,1 -m ppo ...`.

mpirun can bind ranks itself, but chooses among all cores of the machine, even if its caller is restricted to some of
them (by taskset, for example).
"""

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Pin this process to its rank's core of a comma-separated list and exec Python with the remaining arguments."""
    cores, *rest = arguments
    rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
    os.sched_setaffinity(0, {int(cores.split(",")[rank])})
    os.execv(sys.executable, [sys.executable, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
