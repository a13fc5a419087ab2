"""Print the setup.py extra that a command line's world needs, if any; for scripts/train."""

import sys

from ppo.families import family_of
from ppo.presets import PRESETS


def env_name(arguments: list[str]) -> str:
    """Return the value of --env_name, otherwise the world of the preset; empty if neither is given."""
    return value_of("env_name", arguments) or PRESETS.get(value_of("preset", arguments), {}).get("env_name", "")


def value_of(name: str, arguments: list[str]) -> str:
    """Return the value of a flag; empty if it is not given."""
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.replace("-", "_") == f"__{name}":
            return value if equals else next(iter(arguments[position + 1 :]), "")
    return ""


if __name__ == "__main__":
    print(family_of(env_name(sys.argv[1:])).extra)
