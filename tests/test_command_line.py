import re
import resource
import sys

import pytest
import torch

from ppo import __version__
from ppo.command_line import explicit_settings, parse_command_line, setting_types
from ppo.families import PROTOCOLS, describe_protocol
from ppo.foreign_flags import FOREIGN_FLAGS
from ppo.settings import Refusal
from tests.jobs import CARTPOLE, ppo, separately

REFUSED = {
    "--env_name=PnogNoFrameskip-v4": "did you mean 'PongNoFrameskip-v4'?",
    "--env_name=CartPol-v1": "did you mean 'CartPole-v1'?",
    "--env_name=CartPole-v99": "the newest version is CartPole-v1",
    "--env_name=Pong-v4": "try PongNoFrameskip-v4",
    "--preset=atarri": "did you mean 'atari'?",
    "--minibatch_size=100": "try 128",
    "--model_name=../escape": "try 'escape'",
    "--model_name=pretrained": "shipped agents",
    "--discount=1.5": "discount must be between 0 and 1, got 1.5",
    "--num_env=8": "there is no setting --num_env; did you mean 'num_envs'?",
    "--total_timesteps=1e6": "there is no setting --total_timesteps; here it is --env_steps: agent steps over all",
    "--env_steps=1.5e0": "env_steps must be a whole number, got '1.5e0'",
    "--model_size=huge": "large",
    "--env_engine=vectro": "vector",
    "--device=gpu": "cuda",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_a_wrong_setting_is_refused_in_words_with_code_2_and_nothing_made(flag, tmp_path):
    job = ppo(tmp_path, flag)
    assert job.returncode == 2
    assert REFUSED[flag] in job.stderr + job.stdout
    assert "Traceback" not in job.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minibatch_size=100"], "try 128"),
        (["--num_env=8"], "did you mean 'num_envs'"),
        (["--env_name=PnogNoFrameskip-v4"], "did you mean"),
        ([*CARTPOLE[:1], "--num_envs=1", "--minibatch_size=32"], "try -np 1 or --num_envs=2"),
    ],
)
def test_a_job_of_two_ranks_is_refused_once(flags, message, tmp_path):
    job = ppo(tmp_path, *flags, ranks=2)
    assert job.returncode == 2
    assert (job.stderr + job.stdout).count(message) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--env_engine=vector", "env_engine must be auto or lean or processes for CartPole-v1, got vector"),
        ("--sticky_actions=0.25", "sticky_actions must not be set for CartPole-v1: it applies to Atari games only"),
        ("--model_size=impala", "model_size must be small or large"),
    ],
)
def test_a_choice_that_a_world_without_emulators_does_not_have_is_refused(flag, message, tmp_path):
    job = ppo(tmp_path, *CARTPOLE, flag)
    assert job.returncode == 2
    assert message in job.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--env_engine=lean", "--precision=float32"])
def test_a_choice_that_every_world_has_may_be_made_for_each(flag, tmp_path):
    job = ppo(tmp_path, *CARTPOLE, flag, "--env_steps=64")
    assert job.returncode == 0, job.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("flag", "message", "ranks"),
    [
        *(("--device=cuda", "try --device=cpu", ranks) for ranks in (0, 2)),
        ("--precision=bfloat16", "precision must be float32 on a processor without AMX, that of rank 0", 0),
    ],
)
def test_settings_for_another_machine_are_refused_once(flag, message, ranks, tmp_path, monkeypatch):
    monkeypatch.setattr("ppo.device.has_amx", lambda: False)
    job = ppo(tmp_path, "--env_name=PongNoFrameskip-v4", flag, ranks=ranks)
    assert job.returncode == 2
    assert job.stderr.count(message) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused_once(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    job = ppo(tmp_path, *CARTPOLE, ranks=2)
    assert job.returncode == 2
    assert job.stderr.count("checkpoint_dir must be a folder this user can write to") == 1


@pytest.mark.parametrize("flag", ["--help", "--help_all"])
def test_help_takes_less_than_two_seconds_of_a_processor(tmp_path, flag):
    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    command = [sys.executable, "-m", "ppo", flag]
    separately(command, tmp_path)
    before = seconds()
    job = separately(command, tmp_path)
    assert seconds() - before < 2.0
    assert job.returncode == 0
    assert "--env_name" in job.stdout


@pytest.mark.parametrize("reader", ["head -n 1", "true"])
def test_a_reader_of_the_help_may_leave_early(tmp_path, reader):
    script = f"set -o pipefail; {sys.executable} -m ppo --help_all | {reader}"
    job = separately(["bash", "-c", script], tmp_path)
    assert (job.returncode, job.stderr) == (0, "")


def printed(capsys, *arguments):
    """What the first rank prints before it leaves with code 0."""
    with pytest.raises(SystemExit) as leave:
        parse_command_line(arguments)
    assert not leave.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("env_name", ["PongNoFrameskip-v4", "CartPole-v1", "CarRacing-v3"])
def test_the_whole_help_lists_every_setting_of_a_world_as_the_readme_spells_it(capsys, env_name):
    text = printed(capsys, "--help_all", f"--env_name={env_name}")
    sections = parse_command_line([f"--env_name={env_name}"]).to_dict().values()
    assert all(f"--{name}" in text for section in sections for name in section)


def test_help_shows_the_defaults_of_the_chosen_world_and_preset(capsys):
    assert "(default: 8)" in printed(capsys, "--help", "--preset", "cleanrl")
    assert "100000" in printed(capsys, "--help", "--env-name=CartPole-v1")
    assert "(default: 8)" in printed(capsys, "--help-all", "--preset", "cleanrl")


def test_the_short_help_fits_a_screen_and_names_the_long_one(capsys):
    lines = printed(capsys, "-h").splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120
    assert any("--help_all" in line for line in lines)


def test_the_version_is_that_of_the_package(capsys):
    assert printed(capsys, "--version") == f"ppo {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["--env_steps=1e6"], 1_000_000),
        (["--env-steps", "2.5E+3"], 2_500),
        (["--env_steps=1_000"], 1_000),
    ],
)
def test_a_whole_number_may_have_an_exponent(arguments, steps):
    assert parse_command_line(arguments).run.env_steps == steps


def test_other_numbers_are_read_as_they_are():
    config = parse_command_line(["--learning_rate=1e-3", "--model_name=1e3", "--keep_checkpoints=3"])
    assert (config.ppo.learning_rate, config.run.model_name) == (1e-3, "1e3")


@pytest.mark.parametrize("name", FOREIGN_FLAGS)
def test_the_name_of_another_program_is_answered_with_ours(name):
    ours, meaning = FOREIGN_FLAGS[name]
    assert ours in ("", *setting_types())
    assert name not in setting_types()
    here = f"here it is --{ours}: " if ours else ""
    with pytest.raises(Refusal, match=f"there is no setting --{name}; {here}{re.escape(meaning)}"):
        parse_command_line([f"--{name}=1"])


def without_mpi(folder, **variables):
    """Run a short training where mpi4py cannot be imported."""
    (folder / "mpi4py").mkdir()
    (folder / "mpi4py/__init__.py").write_text("raise ImportError('no MPI here')")
    command = [sys.executable, "-m", "ppo", *CARTPOLE, "--env_steps=64"]
    return separately(command, folder, PYTHONPATH=str(folder), **variables)


def test_an_environment_without_an_mpi_library_runs_as_one_rank(tmp_path):
    job = without_mpi(tmp_path)
    assert job.returncode == 0, job.stderr
    assert "done: CartPole-v1 at 64 steps" in job.stdout


def test_a_launcher_whose_ranks_mpi_cannot_see_is_refused(tmp_path):
    job = without_mpi(tmp_path, OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="0")
    assert job.returncode == 2
    assert "started 4 processes but MPI sees 1" in job.stderr


def test_single_ranks_that_slurm_took_for_a_job_are_refused_by_each_once(tmp_path):
    flags = ["-m", "ppo", *CARTPOLE, "--env_steps=64"]
    variables = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"}
    job = separately([sys.executable, *flags], tmp_path, SLURM_PROCID="0", **variables)
    assert job.returncode == 2
    assert "srun --mpi=pmix" in job.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], (0.0, False, True)),
        (["--protocol=nature"], (0.0, False, True)),
        (["--protocol=machado"], (0.25, True, False)),
        (["--protocol", "v5"], (0.25, False, False)),
        (["--protocol=v5", "--protocol=nature"], (0.0, False, True)),
        (["--protocol=machado", "--no_full_action_space"], (0.25, False, False)),
        (["--sticky_actions=0.1", "--episodic_life", "--protocol=v5"], (0.1, False, True)),
    ],
)
def test_a_protocol_sets_three_settings_that_other_flags_change_further(flags, expected):
    world = parse_command_line(flags).world
    assert (world.sticky_actions, world.full_action_space, world.episodic_life) == expected


def test_the_settings_of_a_protocol_count_as_named():
    assert explicit_settings(["--protocol=v5"]) == {"sticky_actions", "full_action_space", "episodic_life"}


def test_every_protocol_is_described_by_its_name():
    for name in PROTOCOLS:
        assert describe_protocol(parse_command_line([f"--protocol={name}"]).world).startswith(f"{name} (")
    assert describe_protocol(parse_command_line(["--sticky_actions=0.5"]).world).startswith(
        "your own (sticky actions 0.5"
    )
