"""What remains of a run: checkpoints, logs and videos."""
