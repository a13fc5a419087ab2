"""The recipes of docs/extending.md, followed literally, and the refusals of outside code."""

import importlib.util
import json
import re
import shlex
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import ppo.algorithm.loss
import ppo.algorithm.update
import ppo.envs
from ppo import command_line, families
from ppo.algorithm.samples import Samples
from ppo.command_line import parse_command_line
from ppo.config import PPOSettings
from ppo.envs.gymnasium import GymnasiumEnvironments, GymnasiumWorld
from ppo.families import Family, GymnasiumSettings
from ppo.models.actor_critic import Prediction
from ppo.models.distributions.categories import Categorical
from ppo.supervision.handshake import Introduction, described, disagreement
from tests.jobs import CARTPOLE, ON_PROCESSORS, rows, weights
from tests.jobs import ppo as run_ppo

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
# With rates that depend on the length of a run, a resumed run would differ from one that was long from the start.
SMALL = [*CARTPOLE[1:], "--learning_rate_schedule=constant"]


@dataclass(frozen=True)
class Recipe:
    """A section of the page: files by name, and the flags of its commands without their lengths."""

    title: str
    files: dict[str, str]
    train: list[str]
    evaluate: list[str]

    @property
    def module(self) -> str:
        return next(iter(self.files)).removesuffix(".py")

    @property
    def model_name(self) -> str:
        return parse_command_line(self.train).model_name


def recipe_of(section: str) -> Recipe:
    files = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", section, re.DOTALL)
    train, evaluate = (shlex.split(line) for line in re.findall(r"^python -m ppo (.*)$", section, re.MULTILINE))
    return Recipe(section.splitlines()[0], dict(files), train, evaluate)


SECTIONS = {section.splitlines()[0]: section for section in PAGE.split("\n## ")[1:]}
LOSS, TOUCHED = SECTIONS.pop("Another loss"), SECTIONS.pop("What each change touches")
RECIPES = [recipe_of(section) for section in SECTIONS.values()]
WORLD, NETWORK, DISTRIBUTION = RECIPES
BY_TITLE = pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.title for recipe in RECIPES])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of all recipes, where Python finds modules as it does in that of `python -m`."""
    for recipe in RECIPES:
        for name, text in recipe.files.items():
            (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget_modules()


def forget_modules() -> None:
    """Make the next import of a recipe's module read its file again, as a new process would."""
    for recipe in RECIPES:
        sys.modules.pop(recipe.module, None)
    gymnasium.registry.pop("Corridor-v0", None)
    importlib.invalidate_caches()


def train(folder: Path, recipe: Recipe, *flags: str, env_steps: int = 128) -> str:
    """Train as a recipe says, but only for a few updates of 64 steps; return the output."""
    job = run_ppo(folder, *recipe.train, *SMALL, f"--env_steps={env_steps}", *flags)
    assert job.returncode == 0, job.stderr
    return job.stdout


def without(flags: list[str], name: str) -> list[str]:
    return [flag for flag in flags if not flag.startswith(f"--{name}=")]


def load_module(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_a_recipe_for_a_world_a_network_a_distribution_and_a_loss() -> None:
    assert [sorted(recipe.files) for recipe in RECIPES] == [["corridor.py"], ["layer_norm.py"], ["laplace.py"]]
    assert "```diff" in LOSS


@BY_TITLE
def test_a_recipe_trains_resumes_exactly_and_is_evaluated(recipe: Recipe, folder: Path) -> None:
    train(folder, recipe)
    forget_modules()
    assert f"resuming {recipe.model_name} at 128 steps" in train(folder, recipe, env_steps=256)
    train(folder, recipe, "--model_name=unbroken", env_steps=256)
    resumed, unbroken = weights(folder, recipe.model_name, 256), weights(folder, "unbroken", 256)
    assert all(np.array_equal(unbroken[name], tensor) for name, tensor in resumed.items())
    assert len(rows(folder / "runs" / recipe.model_name / "progress.csv")) == 4
    job = run_ppo(folder, *recipe.evaluate, "--episodes=1")
    assert job.returncode == 0, job.stderr
    assert json.loads(job.stdout.splitlines()[-1])["episodes"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "return_mean"),
    [(WORLD, 0.45), (NETWORK, 475.0), (DISTRIBUTION, 475.0)],
    ids=[recipe.title for recipe in RECIPES],
)
def test_a_recipe_reaches_what_the_page_lets_expect(recipe: Recipe, return_mean: float, folder: Path) -> None:
    job = run_ppo(folder, *recipe.train, ON_PROCESSORS)
    assert job.returncode == 0, job.stderr
    job = run_ppo(folder, *recipe.evaluate)
    assert json.loads(job.stdout.splitlines()[-1])["return_mean"] > return_mean


def test_the_files_that_a_change_touches_today_exist():
    today = [row.split(" | ")[2] for row in TOUCHED.splitlines() if row.startswith("| a")]
    named = [name for cell in today for name in re.findall(r"`(\S+\.py)`", cell)]
    assert len(today) == 5 and len(named) == 5
    assert [name for name in named if not (Path(families.__file__).parent / name).exists()] == []


# --- a world ---------------------------------------------------------------------------------------------------------


def test_a_world_of_ones_own_takes_arguments_and_runs_in_processes(folder: Path) -> None:
    output = train(folder, WORLD, '--env_kwargs={"length": 3}', "--env_engine=processes")
    assert "env_engine: processes" in output
    games = rows(folder / "runs" / WORLD.model_name / "episodes.csv")
    assert max(float(game["return"]) for game in games) <= 1.0
    assert min(float(game["return"]) for game in games) >= -10.0


def test_a_kind_of_worlds_inside_the_package_is_an_entry_and_a_module_with_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = re.findall(r"`(WORLD = .*?)`", SECTIONS[WORLD.title])
    assert line == "WORLD = GymnasiumWorld(GymnasiumEnvironments)"
    family = Family("corridors", "corridors", r"corridor:Corridor-v\d+", GymnasiumSettings, "continuous", ("lean",))
    for module in (families, command_line):
        monkeypatch.setattr(module, "FAMILIES", (family, *families.FAMILIES))
    own = types.SimpleNamespace(WORLD=GymnasiumWorld(GymnasiumEnvironments))
    monkeypatch.setitem(sys.modules, "ppo.envs.corridors", own)
    train(folder, WORLD)
    assert "resuming" in train(folder, WORLD, env_steps=192)
    manifest = json.loads(
        (folder / "checkpoints" / WORLD.model_name / "step_000000000192" / "manifest.json").read_text()
    )
    assert manifest["family"] == "corridors"
    assert manifest["config"]["model"]["observation_normalization"]
    assert run_ppo(folder, *WORLD.evaluate, "--episodes=1").returncode == 0


def test_a_world_that_does_not_repeat_itself_begins_a_new_episode_and_the_log_says_so(folder: Path) -> None:
    text = WORLD.files["corridor.py"]
    assert "self.np_random" in text
    (folder / "corridor.py").write_text(text.replace("self.np_random", "np.random.default_rng()"))
    train(folder, WORLD)
    assert "began a new episode" in train(folder, WORLD, env_steps=192)


# --- a distribution --------------------------------------------------------------------------------------------------


def test_the_laplace_distribution_of_the_page_agrees_with_that_of_torch(folder: Path) -> None:
    kind = load_module(folder / "laplace.py").Laplace
    distribution = kind(gymnasium.spaces.Box(-1.0, 2.0, (2, 3)))
    generator = torch.Generator().manual_seed(0)
    old_outputs, outputs = torch.randn(2, 5, distribution.num_outputs, generator=generator)

    def reference(outputs: torch.Tensor) -> torch.distributions.Laplace:
        means, log_scales = outputs.chunk(2, -1)
        return torch.distributions.Laplace(means, log_scales.exp())

    noise = distribution.noise(np.random.default_rng(0), 5)
    actions = distribution.sample(outputs, torch.from_numpy(noise))
    assert actions.shape == (5, *distribution.action_shape)
    old, new = reference(old_outputs), reference(outputs)
    torch.testing.assert_close(distribution.log_prob(outputs, actions), new.log_prob(actions).sum(-1))
    torch.testing.assert_close(distribution.entropy(outputs), new.entropy().sum(-1))
    torch.testing.assert_close(
        distribution.kl(old_outputs, outputs), torch.distributions.kl_divergence(old, new).sum(-1)
    )
    assert np.array_equal(distribution.noise(np.random.default_rng(0), 9)[:5], noise)
    taken = distribution.to_environment(actions.numpy())
    assert taken.shape == (5, 2, 3) and taken.min() >= -1.0 and taken.max() <= 2.0


# --- a loss ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def edited(tmp_path: Path) -> types.ModuleType:
    """The module of the loss with the edit of the page."""
    text = Path(ppo.algorithm.loss.__file__).read_text()
    (diff,) = re.findall(r"```diff\n(.*?)```", LOSS, re.DOTALL)
    for hunk in diff.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        assert text.count(before) == 1, f"the page changes what is not there:\n{before}"
        text = text.replace(before, after)
    path = tmp_path / "edited_loss.py"
    path.write_text(text)
    return load_module(path)


def install(edited: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the learner use the edited module as it would the one in its place."""
    for name in ("ppo_loss", "loss_terms", "TERMS"):
        monkeypatch.setattr(ppo.algorithm.update, name, getattr(edited, name))


def test_the_new_term_is_a_column_and_a_run_without_it_continues(
    edited: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = re.findall(r"^python -m ppo (.*)$", LOSS, re.MULTILINE)
    flags = [*without(shlex.split(line), "env_steps"), *SMALL]
    assert run_ppo(tmp_path, *flags, "--env_steps=128").returncode == 0
    install(edited, monkeypatch)
    job = run_ppo(tmp_path, *flags, "--env_steps=256")
    assert "resuming" in job.stdout, job.stderr
    # A log has one header: that of the run without the term was set aside.
    assert "has other columns than this run" in job.stdout
    after = rows(tmp_path / "runs/CartPole-v1/progress.csv")
    assert [row["update"] for row in after] == ["3", "4"]
    for row in after:
        penalty, estimate = float(row["update/kl_penalty"]), float(row["update/approx_kl"])
        assert 0.2 < penalty / estimate < 5.0


def test_the_new_term_adds_the_gradient_of_the_divergence(edited: types.ModuleType) -> None:
    distribution = Categorical(gymnasium.spaces.Discrete(4))
    generator = torch.Generator().manual_seed(0)
    old_outputs, outputs = torch.randn(2, 8, 4, generator=generator)
    actions = torch.arange(8) % 4
    log_probs = distribution.log_prob(old_outputs, actions)
    values, returns, advantages = torch.randn(3, 8, generator=generator)
    samples = Samples(actions, old_outputs, log_probs, values, returns, advantages)

    def gradient(loss: object) -> torch.Tensor:
        head = outputs.clone().requires_grad_()
        (by_head,) = torch.autograd.grad(loss(head), head)  # type: ignore[operator]
        return by_head

    def of(module: types.ModuleType) -> torch.Tensor:
        return gradient(
            lambda head: module.ppo_loss(Prediction(head, values), samples, distribution, PPOSettings(), 0.2)
        )

    added = gradient(lambda head: distribution.kl(old_outputs, head).sum())
    assert added.abs().max() > 0.01
    torch.testing.assert_close(of(edited) - of(ppo.algorithm.loss), added)


def test_a_loss_without_a_term_that_the_display_shows_is_trained_with(
    edited: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(edited, monkeypatch)
    monkeypatch.setattr(ppo.algorithm.update, "TERMS", ("approx_kl", "kl_penalty"))
    assert run_ppo(tmp_path, *CARTPOLE, "--env_steps=64").returncode == 0


# --- what is refused -------------------------------------------------------------------------------------------------


@BY_TITLE
def test_a_checkpoint_that_names_code_from_outside_is_refused_unless_the_command_line_names_it_too(
    recipe: Recipe, folder: Path
) -> None:
    train(folder, recipe)
    forget_modules()
    (flag,) = (flag for flag in recipe.evaluate if f"={recipe.module}:" in flag)
    rest = [other for other in recipe.evaluate if other != flag]
    job = run_ppo(folder, *rest, f"--model_name={recipe.model_name}", "--episodes=1")
    assert job.returncode == 2
    assert f"needs code or arguments from outside this package; if you trust them, add {flag}" in job.stderr
    assert recipe.module not in sys.modules


@BY_TITLE
def test_a_rank_whose_file_differs_is_named_before_anything_is_made(recipe: Recipe, folder: Path) -> None:
    config = parse_command_line(recipe.train)
    everyone = [Introduction(0, "host0", None, described(config))]
    with open(folder / f"{recipe.module}.py", "a") as file:
        file.write("# edited on one host\n")
    everyone.append(Introduction(1, "host1", None, described(config)))
    text = disagreement(everyone)
    assert text is not None and text.startswith("rank 1 on host1 was started differently from rank 0 on host0")
    (flag,) = (flag for flag in recipe.train if f"={recipe.module}:" in flag)
    assert f": version of module of {flag[2:].partition('=')[0]} '" in text


def test_a_resumed_run_says_that_the_file_has_changed(folder: Path) -> None:
    train(folder, NETWORK)
    with open(folder / "layer_norm.py", "a") as file:
        file.write("# edited\n")
    output = train(folder, NETWORK, env_steps=192)
    assert "not bit-identical to an uninterrupted run, because these changed: module of network" in output


@BY_TITLE
def test_a_run_with_code_from_outside_does_not_continue_without_it(recipe: Recipe, folder: Path) -> None:
    train(folder, recipe)
    other = next(flag for flag in recipe.train if f"={recipe.module}:" in flag)
    rest = [flag for flag in recipe.train if flag != other]
    if recipe is WORLD:
        rest.append("--env_name=CartPole-v1")
    job = run_ppo(folder, *rest, *SMALL, f"--model_name={recipe.model_name}", "--env_steps=192")
    assert job.returncode == 2
    assert f"use the old settings ({other}" in job.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--network=nowhere:Encoder", "network must name an importable class, got 'nowhere:Encoder'"),
        ("--network=layer_norm:Missing", "network must name an importable class, got 'layer_norm:Missing'"),
        ("--network=math:pi", "network must name a subclass of Module, got 'math:pi'"),
        ("--network=torch.nn:Identity", "network must define num_features, the length of its output; torch.nn:Ident"),
        (
            "--network=refused:Dropout",
            "network must behave the same in acting and learning: Dropout (actor.1) is random; remove it",
        ),
        ("--network=refused:Fixed", "network must have a gradient for every parameter, but actor.weight has none"),
        ("--network=refused:Large", "network must fit the observations: refused:Large needs images"),
        ("--policy=torch.nn:Identity", "policy must name a subclass of ActionDistribution, got 'torch.nn:Identity'"),
        ("--policy=laplace:Laplace", "policy=laplace:Laplace needs a Box space, got Discrete(2)"),
        ("--env_name=nowhere:World-v0", "names a module that cannot be imported here"),
        ("--env_name=corridor:Corrider-v0", "did you mean 'Corridor-v0'"),
    ],
)
def test_code_from_outside_that_does_not_fit_is_refused_and_nothing_is_made(
    flag: str, message: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / "refused.py").write_text(
        "from torch import nn\n"
        "class Dropout(nn.Sequential):\n"
        "    num_features = 4\n"
        "    def __init__(self, shape, settings):\n"
        "        super().__init__(nn.Linear(4, 4), nn.Dropout(0.5))\n"
        "class Fixed(nn.Linear):\n"
        "    num_features = 4\n"
        "    def __init__(self, shape, settings):\n"
        "        super().__init__(4, 4)\n"
        "        self.weight.requires_grad = False\n"
        "class Large(nn.Module):\n"
        "    def __init__(self, shape, settings):\n"
        "        raise ValueError('images')\n"
    )
    empty = tmp_path_factory.mktemp("empty")
    job = run_ppo(empty, *CARTPOLE, flag, "--env_steps=64")
    sys.modules.pop("refused", None)
    assert job.returncode == 2
    assert message in job.stderr
    assert list(empty.iterdir()) == []
