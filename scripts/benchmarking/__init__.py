"""The benchmark: the limits of this machine, the program's speed, and Stable-Baselines3 for comparison."""
