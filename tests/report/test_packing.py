import base64
import json
import re
import zlib

import numpy as np
import pytest

from ppo.report.packing import Pack


def unpack(text):
    """Return the JSON of a block and a function that finds an array in it."""
    block = zlib.decompress(base64.b64decode(text))
    length = int.from_bytes(block[:4], "little")
    content, start = json.loads(block[4 : 4 + length]), 4 + length
    assert start % 8 == 0

    def array(reference):
        size = int(np.prod(reference["shape"]))
        found = np.frombuffer(block, reference["type"], size, start + reference["at"]).reshape(reference["shape"])
        return np.bitwise_xor.accumulate(found, 0) if reference.get("film") else found

    return content, array


def test_arrays_come_back_as_they_were():
    pack, generator = Pack(), np.random.default_rng(0)
    arrays = [
        generator.standard_normal((3, 5)).astype(np.float32),
        generator.integers(-127, 128, 7).astype(np.int8),
        generator.integers(0, 256, (2, 3)).astype(np.uint8),
    ]
    content, array = unpack(pack.encode({"arrays": [pack.add(one) for one in arrays]}))
    for before, reference in zip(arrays, content["arrays"], strict=True):
        np.testing.assert_array_equal(array(reference), before)


def test_a_film_comes_back_and_takes_little_room_where_little_changes():
    film = np.zeros((500, 84, 84), np.uint8)
    for number in range(500):
        film[number, number % 84, 10:14] = 200
    still = film.copy()
    pack = Pack()
    text = pack.encode({"film": pack.add_film(film)})
    content, array = unpack(text)
    np.testing.assert_array_equal(array(content["film"]), still)
    np.testing.assert_array_equal(film, still)
    assert len(text) < film.size / 100


def test_nothing_in_the_text_is_more_than_letters_to_html():
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", Pack().encode({"name": "</script><script>alert(1)</script>"}))


def test_numbers_that_json_does_not_have_are_refused():
    with pytest.raises(ValueError):
        Pack().encode({"score": float("nan")})
