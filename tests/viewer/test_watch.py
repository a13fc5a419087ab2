import contextlib
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
import urllib.request
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch

from ppo.agents import find_agent, restore_model
from ppo.command_line import explicit_settings, parse_command_line
from ppo.envs import make_envs
from ppo.viewer import watch as watch_module
from ppo.viewer.lookers import BEAT
from ppo.viewer.server import free_port
from ppo.viewer.watch import Show
from tests.forgery import MODEL, replace_file
from tests.jobs import CARTPOLE, ppo
from tests.report.test_packing import unpack

CART = "CartPole-v1"


class Watched:
    """A show and a page that looks; messages are unpacked."""

    def __init__(self, *flags, looks=True):
        flags = (f"--env_name={CART}", "--mode=watch", *flags)
        self.config, self.explicit = parse_command_line(flags), explicit_settings(flags)
        self.show = Show(self.config, self.explicit)
        self.looker = self.show.lookers.add() if looks else None
        self.beats, self.states, self.progress = [], [], []

    def run(self, until, seconds=30.0, **command):
        """Play until something holds, which is asked after every message; first do a command."""
        if command:
            self.show.do(command)
        deadline = time.monotonic() + seconds

        def exit_code():
            for kind, text in self.looker.take(0.0) if self.looker else ():
                content, array = unpack(text)
                into = {BEAT: self.beats, "state": self.states, "progress": self.progress}[kind]
                into.append((content, array))
            if until():
                return 7
            assert time.monotonic() < deadline
            return None

        assert self.show.run(exit_code) == 7

    @property
    def state(self):
        return self.states[-1][0]

    def newest(self, name):
        content, array = self.beats[-1]
        return array(content[name])


def of_shipped(folder, **options):
    return Watched("--checkpoint=shipped", f"--checkpoint_dir={folder}", f"--run_dir={folder}", **options)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    made = of_shipped(tmp_path_factory.mktemp("empty"))
    yield made
    made.show.close()


@pytest.fixture
def watched(one):
    """A watcher of the shipped agent, which plays."""
    one.beats.clear()
    one.run(lambda: len(one.beats) >= 2 and one.states, pause=False, speed=1, act="sample")
    return one


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run that has four checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    job = ppo(folder, *CARTPOLE, "--env_steps=192", "--checkpoint_interval=1")
    assert job.returncode == 0, job.stderr
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


def test_what_is_sent_is_what_the_agent_saw_said_and_expected(watched):
    agent = find_agent(watched.config, watched.explicit)
    envs = make_envs(CART, agent.config.world, indices=range(1), seed=0)
    model = restore_model(agent, envs)
    seen = watched.newest("vector")
    with torch.inference_mode():
        expected = model(torch.tensor(seen[None]))
    np.testing.assert_allclose(watched.newest("outputs"), expected.action[0], atol=1e-4)
    value = float(agent.moments.denormalize(expected.values)[0])
    assert watched.newest("values")[-1] == pytest.approx(value, rel=1e-4)
    assert watched.state["distribution"] == {"kind": "categorical", "sizes": [2], "starts": [0]}
    assert watched.state["actionNames"] == ["push left", "push right"] and len(watched.state["entryNames"]) == 4


def test_pictures_come_at_the_speed_of_the_game(watched):
    content, array = watched.beats[-1]
    assert content["seconds"] == pytest.approx(len(array(content["pictures"])) / 50.0)
    assert array(content["pictures"]).shape[1:] == (400, 600) and array(content["palette"]).shape[1] == 3
    begun, before = time.monotonic(), len(watched.beats)
    watched.run(lambda: len(watched.beats) >= before + 20)
    lasted = sum(content["seconds"] for content, _ in watched.beats[before : before + 20])
    assert time.monotonic() - begun > lasted - 0.4  # as much is made up for after a delay


def test_a_page_that_comes_is_told_all_that_it_needs(watched):
    watched.run(lambda: watched.state["isPaused"], pause=True)
    newcomer = watched.show.lookers.add()
    kinds = set()
    watched.run(lambda: kinds.update(kind for kind, _ in newcomer.take(0.0)) or len(kinds) == 3)
    assert kinds == {BEAT, "state", "progress"}


def test_nothing_is_played_and_no_file_is_read_while_nobody_looks(tmp_path, monkeypatch):
    watched = of_shipped(tmp_path, looks=False)
    monkeypatch.setattr(watched.show, "_play", lambda seconds: pytest.fail("played"))
    monkeypatch.setattr(watched.show, "_poll", lambda: pytest.fail("polled"))
    end = time.monotonic() + 0.5
    begun = time.process_time()
    watched.run(lambda: time.monotonic() > end)
    assert time.process_time() - begun < 0.2
    watched.show.close()


def test_it_pauses_and_goes_on_step_by_step(watched):
    watched.run(lambda: watched.state["isPaused"], pause=True)
    before = len(watched.beats)
    end = time.monotonic() + 0.3
    watched.run(lambda: time.monotonic() > end)
    assert len(watched.beats) == before
    length = watched.beats[-1][0]["length"]
    watched.run(lambda: len(watched.beats) > before, step=True)
    assert watched.beats[-1][0]["length"] == length + 1 and len(watched.newest("values")) == 1
    watched.run(lambda: watched.state["speed"] == 8.0, speed=8)
    for _ in range(6):  # at this speed most pictures are left out
        watched.beats.clear()
        watched.run(lambda: watched.beats, step=True)
        assert len(watched.newest("pictures")) == 1
    watched.run(lambda: len(watched.beats) > 3, pause=False)


def test_speed_and_rule_are_chosen(watched):
    watched.run(lambda: watched.state["speed"] == 4.0, speed=4)
    watched.beats.clear()
    watched.run(lambda: watched.beats)
    content, array = watched.beats[-1]
    assert content["seconds"] * 200.0 == pytest.approx(len(array(content["values"])))
    assert len(array(content["pictures"])) < len(array(content["values"])) / 2  # no more than a screen shows
    assert watched.state["rule"] == "sample" and set(watched.state["rules"]) == {"mode", "sample"}
    watched.run(lambda: watched.state["rule"] == "mode", act="mode")
    watched.beats.clear()
    watched.run(lambda: len(watched.beats) > 20)
    for content, array in watched.beats[1:]:
        assert array(content["action"])[0] == array(content["outputs"]).argmax()


@pytest.mark.parametrize(
    "command",
    [
        {"speed": 3},
        {"speed": "4"},
        {"speed": [1]},
        {"speed": True},
        {"act": "mean"},
        {"act": ["mode"]},
        {"checkpoint": "../x"},
        {"checkpoint": 5},
        {"checkpoint": {"a": 1}},
        {"pause": "yes"},
        {"restart": 1},
        {"other": None},
    ],
)
def test_what_is_no_command_changes_nothing(watched, command):
    before = {**watched.state}
    watched.states.clear()
    watched.run(lambda: watched.states, **command)
    assert {**watched.state, "games": before["games"]} == before


def test_of_too_many_commands_some_are_refused(tmp_path):
    show = of_shipped(tmp_path, looks=False).show
    taken = [show.do({"step": True}) for _ in range(1000)]
    assert any(taken) and not all(taken)
    show.close()


def test_games_that_are_over_are_listed_and_another_one_is_begun_when_it_is_asked_for(run):
    watched = Watched()
    watched.run(lambda: watched.states and watched.state["games"], speed=8)
    (game,) = watched.state["games"]
    over = next(content for content, _ in watched.beats if content["isOver"])
    assert (game["return"], game["length"]) == (over["return"], over["length"])
    assert game["steps"] == 192 and not game["isCut"]
    number = watched.beats[-1][0]["game"]
    watched.run(lambda: watched.beats[-1][0]["game"] > number, restart=True)
    assert watched.beats[-1][0]["length"] <= 20  # the first beat at this speed
    watched.show.close()


def test_a_newer_checkpoint_goes_on_with_the_game(run):
    newest = run / "checkpoints" / CART / "step_000000000192"
    os.rename(newest, run / "later")
    watched = Watched()
    watched.run(lambda: watched.beats and watched.states)
    assert watched.state["steps"] == 128 and watched.state["wishes"] == ["latest", "best", "shipped", "128", "64", "0"]
    game = watched.beats[-1][0]["game"]
    watched.states.clear()
    os.rename(run / "later", newest)
    watched.run(lambda: watched.states and watched.state["steps"] == 192)
    assert watched.state["wishes"][3] == "192"
    beats = len(watched.beats)
    watched.run(lambda: len(watched.beats) > beats)
    assert watched.beats[beats][0]["game"] <= game + 1  # the game may have ended meanwhile
    agent = find_agent(watched.config, watched.explicit)
    model = restore_model(agent, make_envs(CART, agent.config.world, indices=range(1), seed=0))
    with torch.inference_mode():
        expected = model(torch.tensor(watched.newest("vector")[None])).action[0]
    np.testing.assert_allclose(watched.newest("outputs"), expected, atol=1e-5)
    watched.show.close()


def test_a_chosen_checkpoint_stays_whatever_the_training_writes(run):
    newest = run / "checkpoints" / CART / "step_000000000192"
    os.rename(newest, run / "later")
    watched = Watched()
    watched.run(lambda: watched.states and watched.state["steps"] == 64, checkpoint="64")
    os.rename(run / "later", newest)
    watched.run(lambda: "192" in watched.state["wishes"])
    assert watched.state["steps"] == 64
    shutil.rmtree(run / "checkpoints" / CART / "step_000000000064")
    watched.run(lambda: watched.state["wishes"][-2:] == ["0", "64"])
    assert watched.state["steps"] == 64 and watched.state["wish"] == "64"
    watched.run(lambda: watched.state["isShipped"], checkpoint="shipped")
    watched.run(lambda: watched.state["steps"] == 192, checkpoint="latest")
    watched.show.close()


def test_a_damaged_newer_checkpoint_is_passed_over_and_said(run):
    newest = run / "checkpoints" / CART / "step_000000000192"
    os.rename(newest, run / "later")
    (run / "later" / "model.safetensors").write_bytes(b"x")
    watched = Watched()
    watched.run(lambda: watched.beats and watched.states)
    os.rename(run / "later", newest)
    watched.run(lambda: "192" in watched.state["wishes"])
    assert watched.state["steps"] == 128
    assert any("damaged" in note and "step_000000000192" in note for note in watched.state["notes"])
    beats = len(watched.beats)
    watched.run(lambda: len(watched.beats) > beats + 2)
    watched.show.close()


def test_an_agent_whose_numbers_overflow_is_said_and_another_one_begins_a_game(run):
    newest = run / "checkpoints" / CART / "step_000000000192"
    tensors = safetensors.torch.load((newest / MODEL).read_bytes())
    tensors |= {name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items() if "weight" in name}
    replace_file(newest, MODEL, safetensors.torch.save(tensors))
    watched = Watched()
    watched.run(lambda: watched.states and "cannot be played: the outputs" in watched.state["note"])
    assert not watched.beats
    states = len(watched.states)
    end = time.monotonic() + 0.3
    watched.run(lambda: time.monotonic() > end)
    assert len(watched.states) == states
    watched.run(lambda: watched.beats, checkpoint="128")
    assert watched.state["note"] == ""
    watched.show.close()


@pytest.mark.parametrize(("name", "kind"), [("OddActions", "other"), ("Invisible", "categorical")])
def test_a_world_that_cannot_be_drawn_or_has_actions_of_several_kinds_is_shown_as_far_as_it_can_be(
    tmp_path, name, kind
):
    world = f"--env_name=tests.odd_worlds:{name}-v0"
    assert ppo(tmp_path, world, *CARTPOLE[1:], "--env_steps=64").returncode == 0
    folders = (f"--checkpoint_dir={tmp_path}/checkpoints", f"--run_dir={tmp_path}/runs")
    watched = Watched(world, *folders)
    watched.run(lambda: len(watched.beats) > 2 and watched.states)
    assert watched.beats[-1][0]["pictures"] is None and len(watched.newest("vector")) == 2
    assert watched.state["distribution"]["kind"] == kind
    watched.show.close()


def test_a_user_without_a_name_is_no_error(monkeypatch):
    monkeypatch.setattr("getpass.getuser", mock.Mock(side_effect=KeyError("uid not found")))
    assert watch_module._account().startswith("user@")


def test_a_run_whose_checkpoints_all_go_is_still_shown(run):
    watched = Watched()
    watched.run(lambda: watched.beats and watched.states)
    shutil.rmtree(run / "checkpoints")
    watched.run(lambda: watched.state["wishes"] == ["latest", "shipped"])
    beats = len(watched.beats)
    watched.run(lambda: len(watched.beats) > beats + 2)
    watched.show.close()


def test_the_curves_of_the_training_are_followed(run):
    path = run / "runs" / CART / "progress.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))
    watched = Watched()

    def steps():
        if not watched.progress:
            return None
        content, array = watched.progress[-1]
        return array(content["columns"]["env_steps"]).tolist()

    watched.run(lambda: steps() == [64])
    with open(path, "a") as file:
        file.write("".join(lines[2:]))
    watched.run(lambda: steps() == [64, 128, 192])
    assert watched.progress[-1][0]["goal"] == 192
    watched.show.close()


def test_the_goal_is_that_of_the_training_whichever_agent_is_shown(run):
    config = run / "runs" / CART / "config.json"
    content = json.loads(config.read_text())
    content["run"]["env_steps"] = 6400  # extended after its newest checkpoint
    config.write_text(json.dumps(content))
    watched = Watched("--checkpoint=shipped")
    watched.run(lambda: watched.progress)
    assert watched.progress[-1][0]["goal"] == 6400
    config.unlink()
    watched.show.do({"look": True})
    watched.run(lambda: watched.progress[-1][0]["goal"] is None)
    watched.show.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["Ctrl-C", "SIGTERM"])
def test_the_mode_says_where_the_page_is_and_ends_on_a_signal(tmp_path, monkeypatch, number, code):
    given_way: list[int] = []
    monkeypatch.setattr(os, "nice", given_way.append)
    port = free_port()

    def look_and_end():
        with contextlib.suppress(AssertionError):
            wait_for_port(port)
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
        os.kill(os.getpid(), number)

    ender = threading.Thread(target=look_and_end)
    ender.start()
    job = ppo(tmp_path, f"--env_name={CART}", "--checkpoint=shipped", "--mode=watch", f"--port={port}")
    ender.join()
    assert job.returncode == code
    assert given_way == [10]
    assert re.search(rf"watch it: http://127\.0\.0\.1:{port}/[0-9a-f]{{16}}/\?token=[\w-]{{32}}\n", job.stdout)
    assert re.search(rf"ssh -L {port}:127\.0\.0\.1:{port} \S+@\S+\n", job.stdout)


def wait_for_port(port):
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError


def test_a_taken_port_and_one_out_of_bounds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "nice", lambda more: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        job = ppo(tmp_path, f"--env_name={CART}", "--mode=watch", f"--port={port}")
    assert job.returncode == 2 and f"got {port}" in job.stderr and "try --port=" in job.stderr
    job = ppo(tmp_path, f"--env_name={CART}", "--mode=watch", "--port=80")
    assert job.returncode == 2 and "port must be between 1024 and 65535, got 80" in job.stderr


def test_the_newest_checkpoint_is_watched_unless_another_is_named():
    assert parse_command_line(["--mode=watch"]).playback.checkpoint == "latest"
    assert parse_command_line(["--mode=watch", "--checkpoint=best"]).playback.checkpoint == "best"
    assert parse_command_line(["--mode=play"]).playback.checkpoint == "best"
