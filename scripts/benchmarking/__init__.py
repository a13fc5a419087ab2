"""The benchmark: what this machine can do at most, what the program makes of it, and Stable-Baselines3 beside them."""
