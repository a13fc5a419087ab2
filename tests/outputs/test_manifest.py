"""The manifest: read as written, every edit detected, and nothing accepted that this program would not write."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ppo.config import Config
from ppo.outputs import manifest
from ppo.outputs.manifest import Counters, FileEntry, Manifest, OtherFormatError
from ppo.outputs.tensor_file import MAX_FILE_BYTES
from ppo.outputs.untrusted import DamagedCheckpointError
from tests.forgery import sealed

CONFIG = Config().replace_settings({"env_name": "PongNoFrameskip-v4", "num_envs": 8, "kl_stop": 0.03})
MANIFEST = Manifest(
    config=CONFIG,
    counters=Counters(update=12, env_steps=120, seconds=1.5, episodes=3, recent_returns=(1.0, -21.0, 0.1)),
    files={"model.safetensors": FileEntry(10, "ab" * 32), "training.safetensors": FileEntry(MAX_FILE_BYTES, "01" * 32)},
    ranks=2,
    versions={"torch": "2.13.0+cpu"},
    machine={"architecture": "x86_64"},
    logs={"progress.csv": 517, "episodes.csv": 0},
    named=("clip_range", "num_envs"),
)
CONTENT = manifest.encode_manifest(MANIFEST)


def forged(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return the manifest after a change, with a hash that fits."""
    data = json.loads(CONTENT)
    change(data)
    return json.dumps(sealed(data)).encode()


def test_an_encoded_manifest_decodes_to_itself() -> None:
    assert manifest.decode_manifest(CONTENT) == MANIFEST


def test_a_manifest_need_not_say_what_the_command_line_named() -> None:
    assert manifest.decode_manifest(forged(lambda data: data.pop("named"))) == replace(MANIFEST, named=None)


def test_the_hash_is_of_everything_else_however_it_is_laid_out() -> None:
    data = json.loads(CONTENT)
    assert sealed(data) == data
    assert manifest.decode_manifest(json.dumps(data, indent=7, sort_keys=True).encode()) == MANIFEST


def test_an_edited_digit_anywhere_is_found() -> None:
    text = CONTENT.decode()
    for position in (i for i, character in enumerate(text) if character.isdigit()):
        other = "7" if text[position] != "7" else "3"
        with pytest.raises((DamagedCheckpointError, OtherFormatError)):
            manifest.decode_manifest((text[:position] + other + text[position + 1 :]).encode())


def test_a_format_that_was_only_edited_is_damage_and_not_another_version() -> None:
    with pytest.raises(DamagedCheckpointError, match="sha256"):
        manifest.decode_manifest(CONTENT.replace(b'"format": 3', b'"format": 4'))


@pytest.mark.parametrize("change", [lambda d: d.update(format=4), lambda d: d.pop("files")])
def test_a_newer_format_is_recognised_whatever_it_consists_of(change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(CONTENT)
    data["format"] = 4
    change(data)
    data["manifest_sha256"] = "made in another way"
    with pytest.raises(OtherFormatError, match="newer version of ppo: it has format 4, this version reads format 3"):
        manifest.decode_manifest(json.dumps(data).encode())


@pytest.mark.parametrize(
    ("version", "lacks"),
    [(1, ("manifest_sha256", "ranks", "machine", "family", "logs")), (2, ("family", "logs"))],
)
def test_a_format_before_this_one_is_recognised_as_older(version: int, lacks: tuple[str, ...]) -> None:
    data = json.loads(CONTENT)
    data["format"] = version
    for key in lacks:
        del data[key]
    data = data if version == 1 else sealed(data)
    with pytest.raises(OtherFormatError, match=f"older version of ppo: it has format {version}"):
        manifest.decode_manifest(json.dumps(data).encode())


def test_the_worlds_of_a_family_this_version_does_not_know_are_no_damage() -> None:
    with pytest.raises(OtherFormatError, match="another version of ppo: unknown environment family chess"):
        manifest.decode_manifest(forged(put("family", value="chess")))


def test_settings_of_another_family_are_not_those_of_this_one() -> None:
    with pytest.raises(OtherFormatError, match=r"it has the setting world\.sticky_actions"):
        manifest.decode_manifest(forged(put("family", value="gymnasium")))


def test_a_setting_this_version_does_not_know_is_no_damage() -> None:
    with pytest.raises(OtherFormatError, match=r"another version of ppo: it has the setting ppo\.momentum"):
        manifest.decode_manifest(forged(lambda data: data["config"]["ppo"].update(momentum=1)))


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of one member."""

    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


FORGERIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "missing key": lambda d: d.pop("ranks"),
    "unknown key": put("plugins", value=["os"]),
    "text for names": put("named", value="clip_range"),
    "number for a name": put("named", value=[1]),
    "line break among the names": put("named", value=["a\nb"]),
    "no config": put("config", value=None),
    "config section a list": put("config", "ppo", value=[]),
    "unknown section": put("config", "hooks", value={}),
    "setting of a wrong type": put("config", "ppo", "num_envs", value="8"),
    "true for a number": put("config", "ppo", "num_envs", value=True),
    "setting out of bounds": put("config", "ppo", "discount", value=2.0),
    "setting that takes for ever to validate": put("config", "ppo", "rollout_steps", value=10**15),
    "game that begins for ever": put("config", "world", "noop_max", value=10**15),
    "no environments": put("config", "ppo", "num_envs", value=0),
    "words for an environment": lambda d: (put("config", "run", "env_name", value="a b")(d), d.update(env_name="a b")),
    "two environments": put("env_name", value="Acrobot-v1"),
    "other family": lambda d: (put("config", "run", "env_name", value="Go-v0")(d), d.update(env_name="Go-v0")),
    "number for a family": put("family", value=1),
    "list for a family": put("family", value=["atari"]),
    "list for an environment": lambda d: (put("config", "run", "env_name", value=["a"])(d), d.update(env_name=["a"])),
    "line break in a name": lambda d: (put("config", "run", "env_name", value="a\nb")(d), d.update(env_name="a\nb")),
    "counters a list": put("counters", value=[1, 2]),
    "more steps than anybody can train": put("counters", "env_steps", value=2**49 + 1),
    "as many steps as a number can say": put("counters", "env_steps", value=2**63 - 1),
    "more updates than steps": lambda d: d["counters"].update(update=d["counters"]["env_steps"] + 1),
    "more games than steps": lambda d: d["counters"].update(episodes=d["counters"]["env_steps"] + 1),
    "return beyond its bound": put("counters", "recent_returns", value=[1e308, 1e308]),
    "negative return beyond its bound": put("counters", "recent_returns", value=[-1.1e100]),
    "evaluation beyond its bound": put("counters", "evaluation_return", value=1e101),
    "more frames than a game can have": put("config", "world", "max_frames", value=2**62),
    "layers that take for ever to make": put("config", "model", "hidden_sizes", value="9999,9999"),
    "missing counter": lambda d: d["counters"].pop("update"),
    "unknown counter": put("counters", "luck", value=1),
    "negative counter": put("counters", "env_steps", value=-1),
    "negative time": put("counters", "seconds", value=-0.5),
    "true for a counter": put("counters", "episodes", value=True),
    "text for a counter": put("counters", "episodes", value="3"),
    "real number for a counter": put("counters", "env_steps", value=120.0),
    "too many returns": put("counters", "recent_returns", value=[1.0] * 101),
    "text among the returns": put("counters", "recent_returns", value=["1"]),
    "true among the returns": put("counters", "recent_returns", value=[True]),
    "no ranks": put("ranks", value=0),
    "true for ranks": put("ranks", value=True),
    "versions a list": put("versions", value=["torch"]),
    "number for a version": put("versions", value={"torch": 2}),
    "line break in a version": put("versions", value={"torch": "2\n3"}),
    "endless version": put("machine", value={"cpu": "x" * 1000}),
    "logs a list": put("logs", value=["progress.csv"]),
    "log outside": put("logs", "../../secret", value=10),
    "negative length of a log": put("logs", "progress.csv", value=-1),
    "true for a length": put("logs", "progress.csv", value=True),
    "real number for a length": put("logs", "progress.csv", value=517.0),
    "no files": put("files", value={}),
    "files a list": put("files", value=[]),
    "no model": lambda d: d["files"].pop("model.safetensors"),
    "file outside": put("files", "../../secret", value={"size": 10, "sha256": "ab" * 32}),
    "absolute file": put("files", "/etc/passwd", value={"size": 10, "sha256": "ab" * 32}),
    "file entry a number": put("files", "model.safetensors", value=3),
    "size beyond the cap": put("files", "model.safetensors", "size", value=MAX_FILE_BYTES + 1),
    "negative size": put("files", "model.safetensors", "size", value=-1),
    "true for a size": put("files", "model.safetensors", "size", value=True),
    "no hash": lambda d: d["files"]["model.safetensors"].pop("sha256"),
    "number for a hash": put("files", "model.safetensors", "sha256", value=5),
    "hash of other letters": put("files", "model.safetensors", "sha256", value="AB" * 32),
    "more about a file": put("files", "model.safetensors", "url", value="http://example.org"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_manifest_is_damaged_though_its_hash_fits(kind: str) -> None:
    with pytest.raises(DamagedCheckpointError) as caught:
        manifest.decode_manifest(forged(FORGERIES[kind]))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


TEXTS: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello",
    "bytes": b"\xff\x00",
    "byte order mark": b"\xef\xbb\xbf" + CONTENT,
    "UTF-16": CONTENT.decode().encode("utf-16"),
    "truncated": CONTENT[:-1],
    "two documents": CONTENT + CONTENT,
    "list": b"[1]",
    "text value": b'"format"',
    "nothing": b"null",
    "deep lists": b"[" * 100_000,
    "closed deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep member": CONTENT.replace(b'"ranks": 2', b'"ranks": ' + b"[" * 900 + b"]" * 900),
    "not a number": CONTENT.replace(b"1.5", b"NaN"),
    "infinity": CONTENT.replace(b"1.5", b"Infinity"),
    "infinity by size": CONTENT.replace(b"1.5", b"1e999"),
    "endless integer": CONTENT.replace(b"120", b"1" * 5000),
    "large integer": CONTENT.replace(b"120", b"9223372036854775808"),
    "negative zero by name": CONTENT.replace(b"1.5", b"-Infinity"),
    "duplicate key": CONTENT.replace(b'"ranks": 2', b'"ranks": 2, "ranks": 2'),
    "lone surrogate": forged(put("versions", value={"torch": "\ud800"})),
    "format true": forged(put("format", value=True)),
    "format text": forged(put("format", value="3")),
    "no format": forged(lambda d: d.pop("format")),
    "hash a list": CONTENT.replace(b'"manifest_sha256": "', b'"manifest_sha256": [], "x": "'),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_traps_in_json_are_damage(kind: str) -> None:
    with pytest.raises(DamagedCheckpointError) as caught:
        manifest.decode_manifest(TEXTS[kind])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
