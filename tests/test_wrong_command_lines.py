"""Command lines that are wrong, or meant for another program, each with the one line that answers it."""

import re
import shlex

import pytest

from ppo.command_line import explicit_settings, parse_command_line
from ppo.envs import check_environment
from ppo.models.actor_critic import build_distribution, check_model
from ppo.settings import Refusal, printable

ANSWERS = {
    # Other programs: Stable-Baselines3 and RL-Zoo
    "--algo ppo --env CartPole-v1": "no setting --algo; here it is --preset: the algorithm is always PPO",
    "--env CartPole-v1": "no setting --env; here it is --env_name",
    "--total_timesteps=1e6": "no setting --total_timesteps; here it is --env_steps: agent steps over all environments",
    "--n_steps=128": "here it is --rollout_steps: steps of each environment",
    "--batch_size=64": "here it is --minibatch_size",
    "--n_epochs=10": "here it is --num_epochs",
    "--gamma=0.99": "here it is --discount",
    "--ent_coef=0.01": "here it is --entropy_coefficient",
    "--vf_coef=0.5": "here it is --value_coefficient: weight of the value loss, which is half the squared error",
    "--target_kl=0.01": "here it is --kl_stop",
    "--policy_kwargs=dict(net_arch=[64,64])": "here it is --hidden_sizes",
    "--hyperparams n_steps:128": "here it is --preset: named settings",
    "--eval_freq=1000": "here it is --evaluation_interval: updates between two evaluations",
    "--save_freq=1000": "here it is --checkpoint_interval",
    "--policy=MlpPolicy": "policy must be one of",
    # CleanRL
    "--env-id BreakoutNoFrameskip-v4": "no setting --env_id; here it is --env_name",
    "--total-timesteps 10000000": "here it is --env_steps",
    "--num-steps 128": "here it is --rollout_steps",
    "--num-minibatches 4": "here it is --minibatch_size: steps per gradient step: num_envs * rollout_steps / minibatch",
    "--seed 1": "here it is --rng_seed",
    "--exp-name mine": "here it is --model_name",
    "--track": "track must have a value, as --track=VALUE",
    "--wandb": "here it is --track: --track=wandb",
    "--no-cuda": "here it is --device",
    "--capture-video": "here it is --mode: --mode=record",
    "--anneal-lr": "here it is --learning_rate_schedule",
    # lucaslingle/pytorch_ppo_atari, whose sizes are per rank
    "--timesteps_per_actorbatch=256": "here it is --rollout_steps: .* there it is per rank, which has one environment",
    "--optim_batchsize=64": "here it is --minibatch_size: .* there it is per rank: multiply it by the number of ranks",
    "--optim_stepsize=1e-3": "here it is --learning_rate",
    "--ppo_epsilon=0.2": "here it is --clip_range",
    "--no_frame_stacking": "here it is --frame_stack: .* 1 to switch stacking off",
    # pytorch-a2c-ppo-acktr-gail
    "--num-env-steps 10000000 --use-gae": "here it is --env_steps",
    "--num-processes 8": "here it is --num_envs: environments of the whole job",
    # Words of the field
    "--lr=3e-4": "here it is --learning_rate",
    "--frameskip=4": "no setting --frameskip; an agent step of Atari is 4 frames",
    "--optimizer=sgd": "no setting --optimizer; it is Adam",
    "--max_restarts=3": "it belongs to the launcher, ./scripts/train or ppo",
    "--resume": "here it is --model_name: a run that is started again goes on by itself",
    "--play": "here it is --mode: --mode=play",
    "--protocol=v4": "protocol must be one of nature, machado, v5, got 'v4'",
    "--protocol=v5 --env_name=CartPole-v1": "protocol must not be set for CartPole-v1: it applies to Atari only",
    "--protocol": "protocol must be one of nature, machado, v5, got ''",
    # Typing
    "train": "'train' must be a setting, as --name=value",
    "env_name=CartPole-v1": "'env_name=CartPole-v1' must be a setting, as --name=value",
    "-np 4": "'-np 4' must be a setting, .* the number of ranks is mpirun's",
    "--env_name": "env_name must have a value, as --env_name=VALUE",
    "--fresh=yes": "'yes' must be a setting, .* a switch is --name or --no_name",
    "--num_env=8": "no setting --num_env; did you mean 'num_envs'?",
    "--env_steps=1M": "env_steps must be a whole number, got '1M'",
    "--env_steps=1,000,000": "env_steps must be a whole number, got '1,000,000'",
    "--env_steps=-5": "env_steps must be between 1 and",
    "--learning-rate=fast": "learning_rate must be a number, got 'fast'",
    "--discount=1.5": "discount must be between 0 and 1, got 1.5",
    "--minibatch_size=100": "minibatch_size must be a multiple of num_envs = 64 .* try 128",
    "--hidden_sizes=[64,64]": "hidden_sizes must be auto or up to 16 numbers below 10000, as 64,64",
    "--mode=test": "mode must be one of train, play, watch, record, .* got 'test'",
    "--device=gpu": "device must be one of auto, cpu, cuda, got 'gpu'",
    "--preset=Atari": "did you mean 'atari'?",
    "--model_name='my run'": "try 'my-run'",
    "--checkpoint=last": "checkpoint must be best, latest, shipped or a number of steps, got last",
    # Worlds
    "--env_name=Pong": "got Pong; try PongNoFrameskip-v4",
    "--env_name=pong": "did you mean 'ALE/Pong-v5'?",
    "--env_name=BreakoutNoFrameSkip-v4": "did you mean 'BreakoutNoFrameskip-v4'?",
    "--env_name=CartPole": "the newest version is CartPole-v1",
    "--env_name=LunarLander-v2": "has been retired by Gymnasium; the newest version is LunarLander-v3",
    "--env_name=CartPole-v1 --sticky_actions=0.25": "sticky_actions must not be set for CartPole-v1: it applies to",
    "--env_name=Acrobot-v1 --env_kwargs='{a: 1}'": "env_kwargs must be a JSON object such as",
}


def answer(line: str) -> str:
    """Return what the program says to a command line before it makes anything."""
    flags = shlex.split(line)
    explicit = explicit_settings(flags)
    with pytest.raises(Refusal) as refusal:
        config = parse_command_line(flags)
        spaces = check_environment(config, explicit)
        check_model(spaces.observation_space, spaces.action_space, config.model)
        build_distribution(spaces.action_space, config.model)
    return str(refusal.value)


def test_there_are_fifty() -> None:
    assert len(ANSWERS) >= 50


@pytest.mark.parametrize("line", ANSWERS)
def test_a_wrong_command_line_is_answered_in_one_line_that_names_what_to_type(line: str) -> None:
    text = answer(line)
    assert printable(text) == text
    pattern = ".*".join(re.escape(part) for part in ANSWERS[line].split(" .* "))
    assert re.search(pattern, text), text
