"""The learning rule: rollouts, normalisation, the equations of PPO and the update."""
