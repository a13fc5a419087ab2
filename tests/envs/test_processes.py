"""The engine of several processes: the lean engine's games at any number of processes, and no orphaned process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ppo.envs import Engine, Environments, StepResult, make_envs
from ppo.envs.atari import WORLD
from ppo.envs.atari.block import AtariEnvironments
from ppo.envs.processes import ProcessEnvironments, shared_out
from ppo.envs.worker import Layout, SharedMemory, Work, Worker
from ppo.families import AtariSettings

BREAKOUT = "BreakoutNoFrameskip-v4"
STICKY = AtariSettings(sticky_actions=0.25, max_frames=400)


def processes(world: AtariSettings = STICKY, *, indices: range = range(3, 8), number: int = 3):
    envs = make_envs(BREAKOUT, world, indices=indices, seed=1, engine=Engine("processes", number))
    assert isinstance(envs, ProcessEnvironments)
    return envs


def lean(world: AtariSettings = STICKY, *, indices: range = range(3, 8)) -> AtariEnvironments:
    return AtariEnvironments("breakout", world, indices=indices, seed=1)


def random_actions(envs: Environments, num_steps: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, int(envs.single_action_space.n), (num_steps, envs.num_envs))


def assert_same(got: StepResult, expected: StepResult) -> None:
    for one, other in zip(got[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    for name, values in expected[4].items():
        np.testing.assert_array_equal(got[4][name], values, err_msg=name)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended_within(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# ---------------------------------------------------------------------------------------------- against the lean engine


@pytest.mark.parametrize("number", [1, 2, 3, 4, 9])
def test_games_are_those_of_the_lean_engine_whatever_the_number_of_processes(number: int) -> None:
    ours, reference = processes(number=number), lean()
    np.testing.assert_array_equal(ours.reset()[0], reference.reset()[0])
    ends = lives = 0
    for actions in random_actions(reference, 150):
        expected = reference.step(actions)
        assert_same(ours.step(actions), expected)
        np.testing.assert_array_equal(ours.observations, reference.observations)
        ends += int(expected[3].sum())
        lives += int(expected[4]["life_lost"].sum())
    assert ends >= 5 and lives >= 5
    ours.close()


def test_spaces_and_memory_order_are_those_of_the_lean_engine() -> None:
    world = AtariSettings(full_action_space=True, frame_stack=3)
    ours, reference = processes(world, number=1), lean(world)
    assert ours.single_observation_space == reference.single_observation_space
    assert ours.single_action_space == reference.single_action_space
    assert ours.metadata == reference.metadata
    assert (ours.observations.dtype, ours.observations.strides) == (np.uint8, reference.observations.strides)
    assert ours.observation_space.contains(ours.reset()[0])


def test_groups_that_are_on_their_way_together_step_as_the_block_does() -> None:
    ours, reference = processes(), lean()
    ours.reset()
    reference.reset()
    first, second = ours.groups
    assert (first, second) == (slice(0, 2), slice(2, 5))
    for actions in random_actions(reference, 30):
        expected = reference.step(actions)
        ours.send(first, actions[first])
        ours.send(second, actions[second])
        for group in (first, second):
            info = {name: array[group] for name, array in expected[4].items()}
            assert_same(ours.recv(group), (*(part[group] for part in expected[:4]), info))


def test_a_group_that_is_on_its_way_leaves_the_others_as_they_are() -> None:
    envs = processes(number=2)
    envs.reset()
    first, second = envs.groups
    before = envs.observations[second].copy()
    for _ in range(3):
        envs.send(first, np.ones(2, np.int64))
        envs.recv(first)
    np.testing.assert_array_equal(envs.observations[second], before)


@pytest.mark.parametrize("num_envs", range(1, 71))
def test_every_game_belongs_to_one_process_and_all_have_as_many_of_a_group_to_one(num_envs: int) -> None:
    for num_processes in range(1, num_envs + 1):
        blocks = shared_out(num_envs, num_processes)
        assert len(blocks) == num_processes
        for of_group in zip(*blocks, strict=True):
            shares = list(map(len, of_group))
            assert max(shares) - min(shares) <= 1
        totals = [sum(map(len, own)) for own in blocks]
        assert min(totals) >= 1 and max(totals) - min(totals) <= 1
        assert sorted(position for own in blocks for block in own for position in block) == list(range(num_envs))


# ------------------------------------------------------------------------------------------------------- saved states


@pytest.mark.parametrize("number", [1, 2, 4])
def test_saved_games_continue_exactly_in_any_number_of_processes_and_in_the_lean_engine(number: int) -> None:
    original, reference = processes(number=3), lean()
    original.reset()
    reference.reset()
    for actions in random_actions(original, 70):
        original.step(actions)
        reference.step(actions)
    states = original.get_states()
    for state, expected in zip(states, reference.get_states(), strict=True):
        assert state.keys() == expected.keys()
        assert all(np.array_equal(state[name], expected[name]) for name in state)
    fresh, other = processes(number=number), lean()
    assert fresh.set_states(states) == other.set_states(states) == []
    np.testing.assert_array_equal(fresh.observations, original.observations)
    for actions in random_actions(original, 60, seed=1):
        expected = original.step(actions)
        assert_same(fresh.step(actions), expected)
        assert_same(other.step(actions), expected)


def test_games_that_do_not_come_back_exactly_are_named_by_their_indices() -> None:
    original, fresh = processes(number=3), processes(number=2)
    original.reset()
    for actions in random_actions(original, 20):
        original.step(actions)
    states = original.get_states()
    for position in (1, 3):
        states[position]["digest"] = states[position]["digest"] ^ 1
    assert fresh.set_states(states) == [4, 6]


def test_a_state_that_is_refused_leaves_the_games_of_other_processes_alone_too() -> None:
    envs = processes(number=5)
    envs.reset()
    for actions in random_actions(envs, 5):
        envs.step(actions)
    states, before = envs.get_states(), envs.observations.copy()
    envs.reset()
    at_reset = envs.observations.copy()
    assert not np.array_equal(before, at_reset)
    with pytest.raises(ValueError, match="environment 7"):
        envs.set_states([*states[:4], {**states[4], "actions": np.full(3, 200, np.uint8)}])
    np.testing.assert_array_equal(envs.observations, at_reset)
    with pytest.raises(ValueError, match="the number of states must be 5, one per environment, got 4"):
        envs.set_states(states[:4])
    assert envs.set_states(states) == []  # what was asked before has been answered
    np.testing.assert_array_equal(envs.observations, before)


def test_processes_that_play_long_games_again_give_signs_of_life() -> None:
    envs = processes(AtariSettings(), number=2)
    envs.reset()
    envs.step(np.zeros(5, np.int64))
    signs = []
    envs.on_replay = lambda: signs.append(1)
    envs.set_states(envs.get_states())
    assert len(signs) == envs.num_envs  # one when a game's actions begin


# ------------------------------------------------------------------------------------------------------ life and death


def pids(envs: ProcessEnvironments) -> list[int]:
    return [process._process.pid for process in envs._processes]


def test_a_process_that_is_killed_is_noticed_and_named_with_its_games() -> None:
    envs = processes(number=2)
    envs.reset()
    os.kill(pids(envs)[0], signal.SIGKILL)
    message = r"the process \d+ that steps environments 3, 5 has ended \(exit code -9\)"
    with pytest.raises(ChildProcessError, match=message):
        for actions in random_actions(envs, 3):
            envs.step(actions)
    with pytest.raises(ChildProcessError, match="exit code -9"):
        envs.get_states()


def test_a_process_that_dies_while_games_are_played_again_is_no_state_that_is_refused() -> None:
    original, envs = processes(number=1), processes(number=1)
    original.reset()
    original.step(np.zeros(5, np.int64))
    envs.on_replay = lambda: os.kill(pids(envs)[0], signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=r"environments 3, 4, 5, 6, 7 has ended \(exit code -9\)"):
        envs.set_states(original.get_states())


def test_an_error_in_a_process_is_reported() -> None:
    envs = processes(number=1)
    with pytest.raises(ChildProcessError, match=r"(?s)environments 3, 4, 5, 6, 7 failed:.*Error: no game has begun"):
        envs.get_states()


def test_an_error_in_one_half_is_reported_where_the_other_is_sent_after_it() -> None:
    envs = processes(number=1)
    envs.reset()
    first, second = envs.groups
    with pytest.raises(ChildProcessError, match=r"(?s)environments 3, 4, 5, 6, 7 failed:.*IndexError: list index"):
        envs.send(first, np.array([9, 9]))  # no such actions
        assert ended_within(pids(envs), 10)
        envs.send(second, np.array([0, 0, 0]))


def test_states_that_are_larger_than_what_a_socket_holds_get_there() -> None:
    world, engine = AtariSettings(noop_max=0), Engine("processes", 1)
    envs = make_envs("PongNoFrameskip-v4", world, indices=range(12), seed=1, engine=engine)
    envs.reset()
    states = [{**state, "actions": np.zeros(26_000, np.uint8)} for state in envs.get_states()]
    assert envs.set_states(states) == list(range(12))  # no game lasts that long


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_to_a_whole_job_leave_processes_at_work(number: int) -> None:
    envs = processes(number=1)
    envs.reset()
    for pid in pids(envs):
        os.kill(pid, number)
    for actions in random_actions(envs, 3):
        envs.step(actions)
    assert len(envs.get_states()) == 5


def test_a_terminals_interrupt_does_not_reach_them() -> None:
    envs = processes(number=2)
    assert all(os.getsid(pid) != os.getsid(0) for pid in pids(envs))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_that_come_while_a_process_starts_leave_it_at_work(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signalled(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: object, **settings: object) -> None:
            super().__init__(*arguments, **settings)  # type: ignore[call-overload]
            self.send_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Signalled)
    envs = processes(number=1)
    envs.reset()
    envs.step(np.zeros(5, np.int64))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {number}


def test_close_ends_the_processes_and_so_does_losing_the_environments() -> None:
    closed, lost = processes(number=2), processes(number=2)
    closed_pids, lost_pids = pids(closed), pids(lost)
    closed.close()
    closed.close()
    assert not any(map(is_running, closed_pids))
    del lost
    assert ended_within(lost_pids, 10)


def test_processes_end_with_a_rank_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import time\n"
        "from ppo.envs import Engine, make_envs\n"
        "from ppo.families import AtariSettings\n"
        "engine = Engine('processes', 2)\n"
        "envs = make_envs('PongNoFrameskip-v4', AtariSettings(), indices=range(4), seed=0, engine=engine)\n"
        "envs.reset()\n"
        "print(*(process._process.pid for process in envs._processes), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        left = [int(word) for word in rank.stdout.readline().split()]
        assert len(left) == 2 and all(map(is_running, left))
        os.kill(left[0], signal.SIGSTOP)  # this one will not read that its rank has ended
        rank.kill()
    assert ended_within(left, 10)


def test_the_shared_memory_has_no_name_and_goes_with_its_environments() -> None:
    before = set(os.listdir("/proc/self/fd"))
    envs = processes(number=2)
    envs.reset()
    assert set(os.listdir("/proc/self/fd")) > before
    envs.close()
    del envs
    assert set(os.listdir("/proc/self/fd")) == before


def test_shared_memory_is_made_without_memfd_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    ours, reference = processes(number=2), lean()
    np.testing.assert_array_equal(ours.reset()[0], reference.reset()[0])
    for actions in random_actions(reference, 3):
        assert_same(ours.step(actions), reference.step(actions))


def test_a_worker_steps_its_own_games_only() -> None:
    layout = Layout.of(WORLD.check(BREAKOUT, STICKY), 4)
    memory = SharedMemory.make(layout)
    work = Work(BREAKOUT, STICKY, range(4), 1, (range(0, 1), range(3, 4)), layout)
    worker = Worker(work, memory, on_replay=lambda: None)
    worker.reset()
    memory.actions[:] = 1
    worker.step(1)
    stacks = memory.arrays.observations
    assert stacks.any(axis=(1, 2, 3)).tolist() == [True, False, False, True]
    assert np.count_nonzero(stacks[3].any(axis=(1, 2))) == 2  # pictures: the first and that of the step
    assert np.count_nonzero(stacks[0].any(axis=(1, 2))) == 1
