"""The log of a training's games: what is found in it, how it is bounded, what a resume and damage make of it."""

import contextlib
import errno
import os
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from ppo.outputs import game_log
from ppo.outputs.game_log import GameLog, LoggedGame, find_game
from ppo.outputs.trackers import FinishedEpisode, OutputError
from ppo.outputs.untrusted import DamagedCheckpointError
from ppo.settings import Refusal


def finished(number: int, update: int = 1, length: int = 20) -> FinishedEpisode:
    random = np.random.default_rng(number)
    state = {"episode": np.array([number // 2]), "actions": random.integers(0, 4, (length, 2))}
    return FinishedEpisode(number, update, 100 * number, number % 2, random.normal(), length, 0.5, state)


def written(folder: Path, games: list[FinishedEpisode], *, megabytes: int = 100, update: int = 0) -> GameLog:
    """Log games as a run does that saves after every update."""
    log = GameLog(folder, megabytes, update)
    for update in sorted({game.update for game in games}):
        log.log({"update": update}, [game for game in games if game.update == update])
        log.sync()
    return log


def there(folder: Path, numbers: range) -> list[int]:
    """Return which of some games are in a log."""
    found = []
    for number in numbers:
        with contextlib.suppress(Refusal):
            found.append(find_game(folder, number).number)
    return found


def files(folder: Path) -> list[Path]:
    return sorted((folder / "games").iterdir())


def assert_same(found: LoggedGame, game: FinishedEpisode) -> None:
    assert (found.number, found.environment, found.episode_length) == (
        game.episode,
        game.environment,
        game.episode_length,
    )
    assert np.float64(found.episode_return).tobytes() == np.float64(game.episode_return).tobytes()
    assert game.state is not None
    assert found.state.keys() == game.state.keys()
    assert all(np.array_equal(found.state[name], array) for name, array in game.state.items())


def test_every_game_is_found_by_its_number_with_all_its_bits(tmp_path: Path) -> None:
    games = [finished(number, update=1 + number // 4, length=number) for number in range(1, 30)]
    written(tmp_path, games)
    for game in games:
        assert_same(find_game(tmp_path, game.episode), game)


def test_games_are_written_before_a_checkpoint_only_where_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = GameLog(tmp_path, 100, 0)
    log.log({"update": 1}, [finished(1)])
    assert there(tmp_path, range(1, 2)) == []
    monkeypatch.setattr(game_log, "_BYTES_AT_ONCE", 500)
    log.log({"update": 2}, [finished(2, 2)])
    assert there(tmp_path, range(1, 3)) == [1, 2]
    log.log({"update": 3}, [finished(3, 3, length=1)])
    log.close()
    assert there(tmp_path, range(1, 4)) == [1, 2, 3]


def test_a_resumed_run_s_log_holds_what_that_of_a_run_that_was_never_stopped_does(tmp_path: Path) -> None:
    games = [finished(number, update=number // 3) for number in range(3, 30)]
    written(tmp_path / "whole", games)
    written(tmp_path / "killed", games[:20])
    checkpoint = 4
    written(tmp_path / "killed", [game for game in games if game.update > checkpoint], update=checkpoint)
    whole, killed = ([path.read_bytes() for path in files(tmp_path / run)] for run in ("whole", "killed"))
    assert killed == whole


def test_a_new_run_begins_without_the_games_of_another(tmp_path: Path) -> None:
    written(tmp_path, [finished(number, number) for number in range(1, 5)])
    written(tmp_path, [finished(1)], update=0)
    assert there(tmp_path, range(1, 5)) == [1]


def test_the_oldest_games_are_deleted_beyond_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(game_log, "_MEGABYTE", 20_000)
    written(tmp_path, [finished(number, number, length=200) for number in range(1, 200)], megabytes=1)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 20_000
    kept = there(tmp_path, range(1, 200))
    assert kept == list(range(kept[0], 200))
    assert 100 < kept[0] < 190
    with pytest.raises(Refusal, match=rf"from {kept[0]} to 199, got 1; the oldest are deleted"):
        find_game(tmp_path, 1)


def test_what_could_not_be_written_is_tried_again_with_every_update_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = GameLog(tmp_path, 1, 0)
    full = mock.patch.object(
        game_log.GrowingFile, "write", side_effect=OSError(errno.ENOSPC, "No space left on device")
    )
    with full:
        for update in range(1, 40):
            with pytest.raises(OutputError, match="No space left"):
                log.log({"update": update}, [finished(update, update, length=5000)])  # 80 kB
    log.log({"update": 40}, [])
    log.sync()
    kept = there(tmp_path, range(1, 40))
    assert kept[-1] == 39 and len(kept) < 20


def test_a_game_that_is_not_known_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"games has no logged games; .*--replay_megabytes=0"):
        find_game(tmp_path, 1)
    written(tmp_path, [finished(1), finished(3)])
    with pytest.raises(Refusal, match=r"from 1 to 3, got 2"):
        find_game(tmp_path, 2)
    with pytest.raises(Refusal, match=r"from 1 to 3, got 4"):
        find_game(tmp_path, 4)


def test_a_block_that_a_kill_has_cut_anywhere_is_written_anew(tmp_path: Path) -> None:
    games = [finished(number, number) for number in range(1, 4)]
    written(tmp_path, games)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        kept = len(there(tmp_path, range(1, 4)))
        written(tmp_path, games[kept:], update=kept)
        assert b"".join(file.read_bytes() for file in files(tmp_path)) == whole


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_log_is_renamed_and_never_followed(tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "elsewhere", tmp_path / "games/000000000001.games"
    target.write_bytes(b"mine")
    path.parent.mkdir()
    if kind == "link":
        path.symlink_to(target)
    else:
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    log = written(tmp_path, [finished(1)])
    assert "is no log of games" in log.notes[0]
    assert target.read_bytes() == b"mine"
    assert there(tmp_path, range(1, 2)) == [1]


def test_a_changed_byte_is_damage_or_nothing_and_never_another_game(tmp_path: Path) -> None:
    game = finished(1)
    written(tmp_path, [game])
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            assert_same(find_game(tmp_path, 1), game)
        except (DamagedCheckpointError, Refusal):
            continue
        # The last update and the last game, by which no game is found.
        assert 8 <= place < 16 or 24 <= place < 32


@pytest.mark.parametrize("unpacked", [10, 1 << 40])
def test_a_bomb_is_not_unpacked(tmp_path: Path, unpacked: int) -> None:
    packed = zlib.compress(bytes(10_000_000))
    header = game_log._HEADER.pack(game_log._MAGIC, 1, 1, 1, len(packed), unpacked, zlib.crc32(packed))
    (tmp_path / "games").mkdir()
    (tmp_path / "games/000000000001.games").write_bytes(header + packed)
    with pytest.raises(DamagedCheckpointError, match="is damaged"):
        find_game(tmp_path, 1)


@pytest.mark.parametrize(
    "forged",
    [
        {"episode_length": np.array([-20])},
        {"episode_length": np.array([19])},
        {"number": np.array([1.0])},
        {"environment": np.array([[1]])},
        {"state/actions": np.zeros(20)[:0]},
    ],
)
def test_arrays_that_do_not_belong_together_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forged: dict[str, np.ndarray]
) -> None:
    honest = game_log.encode_tensors
    import torch

    monkeypatch.setattr(
        game_log, "encode_tensors", lambda own: honest({**own, **{n: torch.from_numpy(a) for n, a in forged.items()}})
    )
    written(tmp_path, [finished(1)])
    with pytest.raises(DamagedCheckpointError):
        find_game(tmp_path, 1)
