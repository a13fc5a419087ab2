"""The outputs of a run: checkpoints, logs and videos."""
