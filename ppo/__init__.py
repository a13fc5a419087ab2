"""PPO for Atari and its neighbours, distributed over MPI ranks."""

__version__ = "0.1.0"
