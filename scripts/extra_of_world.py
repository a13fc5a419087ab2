"""Print the extra of setup.py that the world of a command line needs, if any; for scripts/train."""

import sys

from ppo.families import family_of


def env_name(arguments: list[str]) -> str:
    """Return the value of --env_name; empty if it is not given."""
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.replace("-", "_") == "__env_name":
            return value if equals else next(iter(arguments[position + 1 :]), "")
    return ""


if __name__ == "__main__":
    print(family_of(env_name(sys.argv[1:])).extra)
