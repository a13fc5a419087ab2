"""Flags of other programs by the names that their users type, and what to type here instead.

Sources: Stable-Baselines3's PPO and RL-Zoo, CleanRL's ppo scripts, lucaslingle/pytorch_ppo_atari and its ppo1, OpenAI
baselines, whose sizes are per rank.
"""

from collections.abc import Mapping

_PER_RANK = "there it is per rank, here it is for the whole job"

FOREIGN_FLAGS: Mapping[str, tuple[str, str]] = {
    # Stable-Baselines3 and RL-Zoo
    "total_timesteps": ("env_steps", "agent steps over all environments"),
    "n_timesteps": ("env_steps", "agent steps over all environments"),
    "n_envs": ("num_envs", "environments of the whole job"),
    "n_steps": ("rollout_steps", "steps of each environment per update"),
    "batch_size": ("minibatch_size", "steps per gradient step"),
    "n_epochs": ("num_epochs", "passes over the rollout per update"),
    "gamma": ("discount", "the discount factor"),
    "ent_coef": ("entropy_coefficient", "weight of the entropy bonus"),
    "vf_coef": ("value_coefficient", "weight of the value loss, which is half the squared error here"),
    "clip_range_vf": ("value_clip_range", "bound of a value prediction's change"),
    "normalize_advantage": ("advantage_normalization", "batch, minibatch or none"),
    "target_kl": ("kl_stop", "end an update's epochs early above this KL divergence"),
    "max_grad_norm": ("max_gradient_norm", "global norm to which the gradient is clipped"),
    "policy_kwargs": ("hidden_sizes", "with --activation, --model_size and --network: the network"),
    "tensorboard_log": ("run_dir", "every run has TensorBoard files in <run_dir>/<model_name>"),
    "normalize": ("observation_normalization", "with --reward_normalization: running moments"),
    "env": ("env_name", "Gymnasium id of the world"),
    "algo": ("preset", "the algorithm is always PPO; a preset names its settings"),
    "env_id": ("env_name", "Gymnasium id of the world"),
    # CleanRL
    "num_steps": ("rollout_steps", "steps of each environment per update"),
    "num_minibatches": ("minibatch_size", "steps per gradient step: num_envs * rollout_steps / minibatches"),
    "update_epochs": ("num_epochs", "passes over the rollout per update"),
    "anneal_lr": ("learning_rate_schedule", "linear or constant, among others"),
    "norm_adv": ("advantage_normalization", "batch, minibatch or none"),
    "clip_coef": ("clip_range", "clip range of the probability ratio"),
    "clip_vloss": ("value_clip_range", "bound of a value prediction's change"),
    "exp_name": ("model_name", "name of the run's folders"),
    "torch_deterministic": ("device", "on a processor every run is repeatable bit for bit"),
    "cuda": ("device", "auto, cpu or cuda"),
    "capture_video": ("mode", "--mode=record makes a video of a saved agent"),
    "track": ("run_dir", "every run has TensorBoard and CSV files there"),
    "seed": ("rng_seed", "seed of every random number of the job"),
    "save_model": ("checkpoint_interval", "updates between two checkpoints"),
    # lucaslingle/pytorch_ppo_atari and OpenAI baselines
    "timesteps_per_actorbatch": ("rollout_steps", f"steps of each environment per update; {_PER_RANK}"),
    "optim_batchsize": ("minibatch_size", f"steps per gradient step; {_PER_RANK}"),
    "optim_epochs": ("num_epochs", "passes over the rollout per update"),
    "optim_stepsize": ("learning_rate", "Adam's step size at the start"),
    "ppo_epsilon": ("clip_range", "clip range of the probability ratio"),
    "clip_param": ("clip_range", "clip range of the probability ratio"),
    "discount_gamma": ("discount", "the discount factor"),
    "entropy_coef": ("entropy_coefficient", "weight of the entropy bonus"),
    "entcoeff": ("entropy_coefficient", "weight of the entropy bonus"),
    "lam": ("gae_lambda", "lambda of generalised advantage estimation"),
    "no_frame_stacking": ("frame_stack", "screens an observation holds; 1 to switch stacking off"),
    "frame_stacking": ("frame_stack", "screens an observation holds"),
    "monitoring_dir": ("run_dir", "where episodes.csv and progress.csv are written"),
    # Words of the field
    "lr": ("learning_rate", "Adam's step size at the start"),
    "steps": ("env_steps", "agent steps over all environments"),
    "epochs": ("num_epochs", "passes over the rollout per update"),
    "name": ("model_name", "name of the run's folders"),
    "resume": ("model_name", "a run that is started again goes on by itself; --fresh begins anew"),
    "load": ("checkpoint", "with --mode=play, record or evaluate: best, latest or a number of steps"),
    "gpu": ("device", "auto, cpu or cuda"),
    "num_workers": ("num_envs", "environments of the whole job; the launcher sets the ranks, as in mpirun -np 4"),
    "render": ("mode", "--mode=play shows a saved agent in a window"),
    "deterministic_eval": ("act", "saved, mean, mode or sample"),
    "render_mode": ("mode", "--mode=play shows a saved agent in a window"),
}
"""Name elsewhere -> the setting here and what it means."""
