"""The cost model recovers the parameters of synthetic measurements, and its tables are those of the document."""

import json
import math
from dataclasses import fields

import pytest

from ppo.config import Config
from scripts.cluster.cost_model import (
    SMALL_SUMS,
    Model,
    Network,
    Settings,
    Wire,
    Work,
    expected_maximum,
    fit,
    fit_wire,
    fit_work,
    on_the_wire_ms,
)
from scripts.cluster.scaling_tables import DOCUMENT, MEASURED, SETTINGS, replaced, tables
from scripts.cluster.time_gradient_sums import Timing, ways_for

NETWORKS = [Network(0.05, 8.0), Network(1.1, 5.0), Network(0.2, 0.95), Network(1.1, 0.95)]
WORK = Work(
    env_per_step=4e-4,
    inference_per_step=8e-5,
    learn_per_sample=2e-4,
    moments_per_step=2e-5,
    constant=0.01,
    relative_wait=expected_maximum(2),
)


@pytest.mark.parametrize("truth", [(2.0, 1.3, 0.4), (1.0, 2.0, 0.0), (0.0, 1.0, 0.7)])
def test_the_fit_finds_the_numbers_that_made_the_times(truth):
    sizes = [2.7, 6.7, 2.7, 6.7]
    ms = [
        truth[0] * network.round_trip_ms + truth[1] * on_the_wire_ms(network, size) + truth[2] * size
        for network, size in zip(NETWORKS, sizes, strict=True)
    ]
    wire = fit_wire(NETWORKS, sizes, ms)
    assert (wire.round_trips, wire.wire_times, wire.ms_per_megabyte) == pytest.approx(truth, abs=1e-9)
    assert wire.worst_error < 1e-9
    assert [wire.ms(n, s, 2) for n, s in zip(NETWORKS, sizes, strict=True)] == pytest.approx(ms)


def test_no_number_of_the_fit_is_negative_whatever_the_noise():
    wire = fit_wire(NETWORKS, [1.0, 1.0, 1.0, 1.0], [0.1, 9.0, 8.0, 1.0])
    assert min(wire.round_trips, wire.wire_times, wire.ms_per_megabyte) >= 0.0


def test_a_ring_of_hosts_takes_more_messages_and_hardly_more_bytes():
    latency_only, bytes_only = Wire(1.0, 0.0, 0.0, 0.0), Wire(0.0, 1.0, 0.0, 0.0)
    network = Network(0.5, 1.0)
    assert latency_only.ms(network, 10.0, 5) == pytest.approx(4 * latency_only.ms(network, 10.0, 2))
    assert bytes_only.ms(network, 10.0, 1_000_000) == pytest.approx(2 * bytes_only.ms(network, 10.0, 2), rel=1e-5)
    assert bytes_only.ms(network, 10.0, 2) == pytest.approx(80.0)
    assert latency_only.ms(network, 10.0, 1) == 0.0


@pytest.mark.parametrize(("count", "expected"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))])
def test_the_mean_of_the_largest_normal_number_is_that_of_the_closed_form(count, expected):
    assert expected_maximum(count) == pytest.approx(expected, abs=1e-6)


def test_an_update_is_the_sum_of_its_parts():
    model = Model(1.0, WORK, {"float32": Wire(1.0, 1.0, 0.0, 0.0)}, shared_memory_ms=0.3)
    settings = Settings(ranks=4, num_envs=8, rollout_steps=16, minibatch_size=32, num_epochs=3)
    busy = 2 * 16 * (4e-4 + 1e-4 + 3 * 2e-4) + 0.01
    assert model.busy_seconds(settings) == pytest.approx(busy)
    network = Network(0.5, 1.0)
    sums = settings.gradient_steps * (0.3 + 0.5 + 32.0) + SMALL_SUMS * 0.5
    assert settings.gradient_steps == 12
    assert model.communication_seconds(settings, 2, network, "float32") == pytest.approx(sums / 1e3)
    assert model.communication_seconds(settings, 1, network, "float32") == pytest.approx(12 * 0.3 / 1e3)
    a_rank_a_host = model.communication_seconds(settings, 4, network, "float32")
    assert a_rank_a_host == pytest.approx((12 * (3 * 0.5 + 1.5 * 32.0) + SMALL_SUMS * 2 * 0.5) / 1e3)
    waiting = expected_maximum(4) * busy
    assert model.seconds(settings, 2, network, "float32") == pytest.approx(busy + waiting + sums / 1e3)


def test_the_work_is_found_in_the_updates_of_one_rank_and_of_two():
    def update(ranks, wait, sums):
        steps = 256 / ranks
        phases = {"env": 4e-4 * steps, "inference": 8e-5 * steps, "learn": 3 * 2e-4 * steps}
        phases["communicate"] = 2e-5 * steps + wait + sums
        seconds = sum(phases.values()) + 0.01
        return {"steps": 256, "epochs": 3, "phases": phases, "seconds": seconds}

    busy = 128 * (4e-4 + 8e-5 + 3 * 2e-4 + 2e-5)
    found = fit_work(update(1, 0.0, 0.0), update(2, expected_maximum(2) * busy, 0.03), sum_seconds=0.03)
    assert vars(found) == pytest.approx(vars(WORK))


def test_blocks_that_do_not_divide_evenly_cost_what_the_largest_costs():
    model = Model(1.0, WORK, {}, 0.0)
    uneven, even = Settings(4, 9, 16, 144, 3), Settings(4, 12, 16, 192, 3)
    assert model.busy_seconds(uneven) == model.busy_seconds(even)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.ranks)
def test_the_settings_to_use_are_accepted(settings):
    assert settings.ranks <= settings.num_envs
    names = ("num_envs", "rollout_steps", "minibatch_size", "num_epochs")
    Config().replace_settings({name: getattr(settings, name) for name in names}).validate()


def test_a_table_without_a_place_is_an_error():
    text = "a\n<!-- begin one -->\nold\n<!-- end one -->\nb"
    assert replaced(text, "one", "new") == "a\n<!-- begin one -->\n\nnew\n\n<!-- end one -->\nb"
    with pytest.raises(ValueError, match="'two'"):
        replaced(text, "two", "new")


def test_the_document_shows_the_measurements_that_are_beside_it():
    measured, text = json.loads(MEASURED.read_text()), DOCUMENT.read_text()
    models = {update["preset"]: fit(measured, update["preset"]) for update in measured["one_host"][0]["updates"]}
    for name, content in tables(measured, models).items():
        assert replaced(text, name, content) == text, f"run python -m scripts.cluster.scaling_tables: {name}"


@pytest.mark.parametrize(
    ("ranks", "hosts", "in_memory"),
    [
        (1, 1, []),
        (2, 1, ["shared memory"]),
        (2, 2, []),
        (4, 2, ["shared memory", "shared memory, bfloat16"]),
        (3, 2, ["shared memory", "shared memory, bfloat16"]),
    ],
)
def test_the_ways_that_are_timed_are_those_that_such_a_job_has(ranks, hosts, in_memory):
    ways = ways_for(ranks, hosts)
    assert [way for way in ways if way.startswith("shared")] == in_memory
    assert len(ways) == 4 + len(in_memory)


def test_a_measurement_of_today_s_ways_fills_every_table():
    measured = json.loads(MEASURED.read_text())
    jobs = [job for part in (*measured["one_host"], *measured["two_hosts"]) for job in part["sums"]]
    for job in jobs:
        today = ways_for(job["ranks"], job["hosts"])
        job["timings"] = [timing for timing in job["timings"] if timing["way"] in today]
        assert {timing["way"] for timing in job["timings"]} == set(today)
        assert all(set(timing) == {field.name for field in fields(Timing)} for timing in job["timings"])
    models = {update["preset"]: fit(measured, update["preset"]) for update in measured["one_host"][0]["updates"]}
    filled = tables(measured, models)
    assert "2 buckets" not in "".join(filled.values())
    assert filled["overlap"].splitlines()[0] == (
        "| cable | network | forward and backward | flat | hierarchical | flat, bfloat16 | hierarchical, bfloat16 |"
    )
