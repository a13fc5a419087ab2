"""Makes a Gymnasium environment from its id, or reports in one line why it cannot be made here."""

import contextlib
import importlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, parse_env_id
from gymnasium.error import DependencyNotInstalled

from ppo.envs import unknown_environment
from ppo.settings import Refusal

Environment = gymnasium.Env[Any, Any]

# Arguments that this package sets itself.
_RESERVED_KWARGS = ("id", "render_mode", "disable_env_checker")
_EXTRAS = {
    "gymnasium.envs.box2d": "box2d",
    "gymnasium.envs.classic_control": "classic-control",
    "gymnasium.envs.mujoco": "mujoco",
    "gymnasium.envs.phys2d": "jax",
    "gymnasium.envs.tabular": "jax",
    "gymnasium.envs.toy_text": "toy-text",
}


def make_environment(env_name: str, env_kwargs: Mapping[str, Any], render_mode: str | None = None) -> Environment:
    """Make the environment of an id, without Gymnasium's per-step checks.

    Args:
        env_name: a registered id, or `module:id` to import the module first.
        env_kwargs: arguments for its constructor, or `max_episode_steps`.
        render_mode: how it is drawn, if at all.

    Raises:
        Refusal: there is no such id, or the environment cannot be made here.
    """
    for name in _RESERVED_KWARGS:
        if name in env_kwargs:
            raise Refusal(f"env_kwargs must not set {name}, which is derived from other settings")
    spec, kwargs = find_spec(env_name), dict(env_kwargs)
    if render_mode:
        kwargs["render_mode"] = render_mode
    with refused_if_it_fails(f"env_name {env_name!r} cannot be made here", spec):
        return gymnasium.make(spec, disable_env_checker=True, **kwargs)


@contextlib.contextmanager
def refused_if_it_fails(what: str, spec: EnvSpec | None = None) -> Iterator[None]:
    """Turn what third-party code raises while it is imported, made or tried into a one-line refusal.

    Args:
        what: what cannot be done; the start of the message.
        spec: spec of the environment, if one could not be made.

    Raises:
        Refusal: anything was raised, SystemExit included.
    """
    try:
        yield
    except Refusal:
        raise
    except (Exception, SystemExit) as error:
        raise Refusal(f"{what}: {cause(error, spec)}") from error


def find_spec(env_name: str) -> EnvSpec:
    """Return the spec registered under an id, after importing the module that the id names, if any.

    Raises:
        Refusal: nothing is registered (the message names the newest version of the environment, or the nearest id), or
            it is an ALE id whose protocol is not this package's (the message names the id to use).
    """
    module, _, env_id = env_name.rpartition(":")
    if module:
        with refused_if_it_fails(f"env_name {env_name!r} names a module that cannot be imported here"):
            importlib.import_module(module)
    if env_id in gymnasium.registry and not _is_of_ale(env_id):
        return gymnasium.registry[env_id]
    from ppo.envs import atari  # registers ALE's ids

    if refusal := atari.other_protocol(env_name):
        raise refusal
    newest, is_old = _newest_version(env_id)
    if newest:
        what = "has been retired by Gymnasium" if is_old else "is not registered"
        raise Refusal(f"env_name {env_name!r} {what}; the newest version is {newest}")
    others = [other for other in gymnasium.registry if not _is_of_ale(other)]
    unknown = unknown_environment(env_name, [*others, *atari.accepted_names()])
    raise Refusal(f"{unknown} (ids of other packages are written module:id, e.g. minigrid:MiniGrid-Empty-5x5-v0)")


def cause(error: BaseException, spec: EnvSpec | None = None) -> str:
    """Return why an environment failed and where, with a remedy if one is known.

    Args:
        error: what was raised.
        spec: spec of the environment, if it could not be made or drawn.
    """
    if isinstance(error, DependencyNotInstalled | ModuleNotFoundError):
        module = str(spec.entry_point).partition(":")[0] if spec else ""
        for package, extra in _EXTRAS.items():
            if module.startswith(package):
                # After the comma comes Gymnasium's advice, which is not always the shortest.
                return f'{str(error).partition(",")[0]}; try pip install "gymnasium[{extra}]"'
        missing = getattr(error, "name", None)
        return f"{error}; try pip install {missing.partition('.')[0]}" if missing else str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    newest, is_old = _newest_version(spec.id) if spec else (None, False)
    way_out = f"; the newest version is {newest}" if is_old else ""
    return f"{type(error).__name__}: {error}{where}{way_out}"


def _is_of_ale(env_id: str) -> bool:
    spec = gymnasium.registry.get(env_id)
    return spec is not None and str(spec.entry_point).startswith("ale_py")


def _newest_version(env_id: str) -> tuple[str | None, bool]:
    """Return the id of an environment's newest version, None if there is none, and whether this one is older."""
    try:
        namespace, name, version = parse_env_id(env_id)
    except gymnasium.error.Error:  # not a valid id
        return None, False
    newest = find_highest_version(namespace, name)
    if newest is None:
        return None, False
    return get_env_id(namespace, name, newest), version is not None and version < newest
