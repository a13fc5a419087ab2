"""Pixels gathered as floats: the compiled way and PyTorch's, and what the compiled one refuses."""

import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo.algorithm import pixels
from ppo.algorithm.rollout import Rollout
from tests.algorithm.learners import SETTINGS, build, weights_of

NEEDS_COMPILER = pytest.mark.skipif(not pixels.IS_COMPILED, reason="needs a C compiler where the package is installed")
WAYS = pytest.mark.parametrize(
    ("is_compiled", "threads"), [pytest.param(True, 1, marks=NEEDS_COMPILER), (False, 1), (True, 2)]
)


@pytest.fixture
def way(monkeypatch):
    def choose(is_compiled, threads):
        if not is_compiled:
            monkeypatch.setattr(pixels, "_pixels", None)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    return choose


@WAYS
def test_gathered_images_are_those_of_their_indices_whatever_the_memory_order(is_compiled, threads, way):
    way(is_compiled, threads)
    shape = (5, 2)
    images = torch.randint(0, 255, (*shape, 84, 84, 4), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    rollout = Rollout(images, *[torch.zeros(shape)] * 9)
    gathered = rollout.observations_at(torch.tensor([7, 0, 7] * 24))  # more than are gathered at once
    assert gathered.dtype == torch.float32
    assert torch.equal(gathered, torch.stack([images[3, 1], images[0, 0], images[3, 1]] * 24).float())
    assert gathered.is_contiguous(memory_format=torch.channels_last)


@WAYS
@pytest.mark.parametrize("index", [4, -5])
def test_an_index_of_no_row_is_refused(is_compiled, threads, index, way):
    way(is_compiled, threads)
    with pytest.raises(IndexError):
        pixels.gather_pixels(torch.zeros(4, 5, dtype=torch.uint8), torch.tensor([0, index]))


@NEEDS_COMPILER
def test_an_update_without_a_compiler_is_the_same(monkeypatch):
    weights = []
    for compiled in (pixels._pixels, None):
        monkeypatch.setattr(pixels, "_pixels", compiled)
        model, collector, learner = build(SETTINGS, env_name="BreakoutNoFrameskip-v4")
        learner.update(collector.collect(0)[0], update=0, env_steps=0, progress=0.0)
        weights.append(weights_of(model))
    assert torch.equal(*weights)


def test_the_faster_code_is_compiled_wherever_there_is_a_compiler():
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    assert pixels.IS_COMPILED or shutil.which(compiler) is None or not headers.exists()


@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("place", "array", "error"),
    [
        (0, np.zeros((2, 6), np.float32), ValueError),
        (0, np.zeros((3, 5), np.float32), ValueError),
        (0, np.zeros((2, 5), np.float64), ValueError),
        (0, np.zeros(10, np.float32), ValueError),
        (1, np.zeros((4, 10), np.uint8)[:, ::2], ValueError),
        (1, np.zeros((4, 5), np.int8), ValueError),
        (2, np.array([0, 1], np.int32), ValueError),
        (2, np.array([0, 4]), IndexError),
        (2, np.array([-1, 0]), IndexError),
    ],
)
def test_compiled_gathering_refuses_what_it_would_read_or_write_beyond(place, array, error):
    arrays = [np.zeros((2, 5), np.float32), np.ones((4, 5), np.uint8), np.array([3, 0])]
    pixels._pixels.gather_pixels(*arrays)
    assert arrays[0].all()
    arrays[place] = array
    with pytest.raises(error):
        pixels._pixels.gather_pixels(*arrays)
