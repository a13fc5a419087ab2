"""Run folders with anything in them: they are read, and a page is made of them, without an exception."""

import json
import random

import pytest

from ppo.config import Config
from ppo.report import run_report
from ppo.report.logs import read_logs

SCRIPT = b"</script><script>alert(1)</script>"
FACTS = {"command": "python -m ppo", "hosts": ["a", "b"], "started": "2026", "commit": "c", "code": "0.1.0", "ranks": 2}
FILES = {
    "progress.csv": b"env_steps,time/seconds,rollout/return_mean,update/entropy,time/env\n"
    + b"".join(b"%d,%d.5,%d,0.7,0.1\n" % (16 * n, n, n) for n in range(1, 30)),
    "episodes.csv": b"episode,env_steps,return,length,time/seconds\n" + b"0,16,20.0,9,0.5\n" * 5,
    "messages.txt": b"2026 WARNING: slow\n2026 done\n",
    "config.json": json.dumps({**Config().to_dict(), **FACTS}).encode(),
    "evaluation.json": json.dumps({"return_mean": 20.5, "episodes": 100, "env_steps": 1000}).encode(),
}
PARTS = [
    *(SCRIPT, b"nan", b"-inf", b"1e999", b"9" * 400, b"1" * 30, b"-1e30", b"1_0", b"null", b"true", b"NaN"),
    *(b"\x00", b"\xff\xfe", b"\n", b",", b'"', b"[" * 3000, b"{", b'"\\ud800"', b"\xe2\x80\xae", b"WARNING", b""),
]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a file's content after some random changes."""
    for _ in range(chance.randint(1, 6)):
        start = chance.randint(0, len(content))
        end = start + chance.choice((0, 0, 1, 5, 40))
        piece = chance.randbytes(chance.randint(0, 9)) if chance.random() < 0.2 else chance.choice(PARTS)
        content = content[:start] + piece + content[end:]
    return content


@pytest.mark.parametrize("seed", range(4))
def test_logs_with_random_damage_are_read_and_shown_without_an_exception(seed, tmp_path):
    chance = random.Random(seed)

    def make_page():
        run_report.build_report("x", None, "", Config(), read_logs(tmp_path), lambda seconds: True)

    for _ in range(15):
        for name, content in FILES.items():
            (tmp_path / name).write_bytes(damaged(content, chance))
        make_page()
    for name in FILES:
        (tmp_path / name).write_bytes(chance.randbytes(5000))
    make_page()
