"""Write the tables of docs/scaling.md from docs/measurements/network.json: what was measured, fitted and predicted.

python -m scripts.cluster.scaling_tables
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ppo.presets import PRESETS, for_environments
from scripts.cluster import time_gradient_sums
from scripts.cluster.cost_model import WAYS, Model, Network, Settings, Wire, fit

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "docs/measurements/network.json"
DOCUMENT = ROOT / "docs/scaling.md"
RANKS_PER_HOST = 8
"""Ranks per host in the predictions."""
NETWORKS = {
    # Round trips of common switches, and the part of the bandwidth that TCP achieves.
    "1 Gbit/s": Network(0.20, 0.94),
    "10 Gbit/s": Network(0.10, 9.4),
    "100 Gbit/s": Network(0.03, 94.0),
}
ENVIRONMENTS_PER_RANK = 8
MOST_ENVIRONMENTS = 1024
"""With more, 16,384 steps per update would leave rollouts of fewer than 16 steps."""


def settings_for(ranks: int) -> Settings:
    """Return the recommended settings for a number of ranks: the default preset with the environments adapted."""
    preset = PRESETS["atari"]
    num_envs = min(max(preset["num_envs"], ENVIRONMENTS_PER_RANK * ranks), MOST_ENVIRONMENTS)
    scaled = for_environments(preset, num_envs)
    return Settings(ranks, num_envs, scaled["rollout_steps"], scaled["minibatch_size"], scaled["num_epochs"])


SETTINGS = tuple(settings_for(2**k) for k in range(9))


def main() -> None:
    """Fill in every table of the document."""
    measured = json.loads(MEASURED.read_text())
    models = {update["preset"]: fit(measured, update["preset"]) for update in measured["one_host"][0]["updates"]}
    text = DOCUMENT.read_text()
    for name, content in tables(measured, models).items():
        text = replaced(text, name, content)
    DOCUMENT.write_text(text)
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")


def tables(measured: dict[str, Any], models: dict[str, Model]) -> dict[str, str]:
    """Return every table by its name in the document."""
    return {
        "machine": machine(measured),
        "settings": settings_table(),
        "sums": sums_table(measured),
        "overlap": overlap_table(measured),
        "one host": one_host_table(measured),
        "two hosts": two_hosts_table(measured, models),
        "fit": fit_table(models),
        **{f"prediction {preset}": prediction_table(model) for preset, model in models.items()},
    }


def replaced(text: str, name: str, content: str) -> str:
    """Put a table between its marks.

    Raises:
        ValueError: the document has no such marks.
    """
    pattern = re.compile(rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the document has no place for the table {name!r}")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def machine(measured: dict[str, Any]) -> str:
    """Return a sentence on where and how the measurements were made."""
    here, versions = measured["machine"], measured["versions"]
    load = here["load_average_before"]
    return (
        f"`{measured['command']}`, {measured['date']}: {here['cores']} cores of {here['cpu']}, load average before "
        f"{load}, torch {versions['torch']}."
    )


def settings_table() -> str:
    """Return the settings for every number of ranks."""
    rows = [
        [
            s.ranks,
            f"{s.num_envs} ({-(-s.num_envs // s.ranks)})",
            s.steps,
            s.gradient_steps,
            f"`--num_envs={s.num_envs}`",
            f"{s.rollout_steps} steps a rollout, minibatches of {s.minibatch_size}",
        ]
        for s in SETTINGS
    ]
    return markdown(["ranks", "environments (a rank)", "steps an update", "gradient steps", "flag", "which sets"], rows)


def cable(pair: dict[str, Any]) -> str:
    """Return the limits of a cable in words."""
    link = pair["link"]
    return f"{link['gigabits_per_second']:g} Gbit/s, {link['delay_milliseconds']:g} ms" if link else "none set"


def sums_table(measured: dict[str, Any]) -> str:
    """Return the milliseconds of every way to sum."""
    one_host = {"ranks": 2, "cable": "one host", "job": measured["one_host"][1]["sums"][0], "tcp": "-"}
    jobs = [one_host]
    for pair in measured["two_hosts"]:
        tcp = f"{pair['cable']['round_trip_ms']:.2f} ms, {pair['cable']['gigabits_per_second']:.2f} Gbit/s"
        jobs += [{"ranks": job["ranks"], "cable": cable(pair), "job": job, "tcp": tcp} for job in pair["sums"]]
    ways = ways_timed([entry["job"] for entry in jobs])
    rows = []
    for entry in jobs:
        for network in ("small", "large"):
            ms = {t["way"]: t["sum_ms"] for t in entry["job"]["timings"] if t["network"] == network}
            ranks = entry["ranks"] if entry["tcp"] == "-" else f"{entry['ranks'] // 2} + {entry['ranks'] // 2}"
            cells = [f"{ms[way]:.2f}" if way in ms else "-" for way in ways]
            rows.append([entry["cable"], entry["tcp"], ranks, network, *cells])
    return markdown(["cable", "round trip and bandwidth of TCP", "ranks", "network", *ways], rows)


def overlap_table(measured: dict[str, Any]) -> str:
    """Return the milliseconds that each way to sum adds to a gradient step of one rank on each of two hosts."""
    jobs = [next(job for job in pair["sums"] if job["ranks"] == 2) for pair in measured["two_hosts"]]
    ways = ways_timed(jobs)
    rows = []
    for pair, job in zip(measured["two_hosts"], jobs, strict=True):
        for network in ("small", "large"):
            timings = {t["way"]: t for t in job["timings"] if t["network"] == network}
            added = [f"{timings[way]['step_ms'] - timings[way]['compute_ms']:.1f}" for way in ways]
            rows.append([cable(pair), network, f"{timings['flat']['compute_ms']:.1f}", *added])
    return markdown(["cable", "network", "forward and backward", *ways], rows)


def ways_timed(jobs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the ways to sum that jobs timed, current ones first; old measurements may have ways since removed."""
    timed = {timing["way"]: None for job in jobs for timing in job["timings"]}
    return [way for way in dict.fromkeys([*time_gradient_sums.WAYS, *timed]) if way in timed]


def one_host_table(measured: dict[str, Any]) -> str:
    """Return the updates of one and two ranks on one host."""
    one, two = ({u["preset"]: u for u in job["updates"]} for job in measured["one_host"])
    rows = []
    for preset, alone in one.items():
        both = two[preset]
        rates = [update["steps"] / update["seconds"] for update in (alone, both)]
        shares = [f"{100 * both['phases'][phase] / both['seconds']:.1f} %" for phase in both["phases"]]
        rows.append([preset, *(f"{rate:.0f}" for rate in rates), f"{rates[1] / rates[0]:.2f}", *shares])
    phases = list(two[next(iter(two))]["phases"])
    return markdown(["preset", "steps/s, 1 rank", "2 ranks", "ratio", *(f"2 ranks: {p}" for p in phases)], rows)


def two_hosts_table(measured: dict[str, Any], models: dict[str, Model]) -> str:
    """Return the updates of two hosts and the model's predictions, which were not fitted to them."""
    rows = []
    for pair in measured["two_hosts"]:
        for update in pair["updates"]:
            wire = "bfloat16" if "bfloat16" in update["flags"] else "float32"
            steps = update["steps"]
            minibatch = steps * update["epochs"] // update["gradient_steps"]
            settings = Settings(2, 2, steps // 2, minibatch, update["epochs"])
            predicted = models[update["preset"]].seconds(settings, 2, Network(**pair["cable"]), wire)
            rows.append(
                [
                    cable(pair),
                    update["preset"],
                    wire,
                    f"{update['seconds']:.3f}",
                    f"{predicted:.3f}",
                    f"{100 * (predicted / update['seconds'] - 1):+.0f} %",
                    f"{100 * update['phases']['communicate'] / update['seconds']:.1f} %",
                ]
            )
    header = ["cable", "preset", "wire", "seconds an update", "model", "error of the model", "communication"]
    return markdown(header, rows)


def fit_table(models: dict[str, Model]) -> str:
    """Return the fitted parameters of the models."""
    rows: list[list[str]] = []
    for preset, model in models.items():
        work = model.work
        rows += [
            [preset, "environment step", f"{1e6 * work.env_per_step:.0f} us"],
            [preset, "inference of a step", f"{1e6 * work.inference_per_step:.0f} us"],
            [preset, "learning from a step, one epoch", f"{1e6 * work.learn_per_sample:.0f} us"],
            [preset, "moments of a step", f"{1e6 * work.moments_per_step:.0f} us"],
            [preset, "else, an update", f"{1e3 * work.constant:.0f} ms"],
            [preset, "wait of two ranks for each other", f"{100 * work.relative_wait:.2f} % of the work"],
            [preset, "sum over the ranks of a host", f"{model.shared_memory_ms:.2f} ms"],
        ]
    wires: dict[str, Wire] = next(iter(models.values())).wires
    for way, name in WAYS.items():
        wire = wires[name]
        value = (
            f"{wire.round_trips:.2f} round trips + {wire.wire_times:.2f} times on the wire + "
            f"{wire.ms_per_megabyte:.2f} ms a MB; worst error {100 * wire.worst_error:.0f} %"
        )
        rows.append(["both", f"sum over two hosts, {way}", value])
    return markdown(["preset", "what", "fitted"], rows)


def prediction_table(model: Model) -> str:
    """Return predicted steps per second, and their share of what as many independent ranks would reach."""
    columns = [(name, wire) for name in NETWORKS for wire in WAYS.values()]
    rows = []
    for settings in SETTINGS:
        if settings.ranks < RANKS_PER_HOST:
            continue
        num_hosts = settings.ranks // RANKS_PER_HOST
        ideal = settings.steps / model.busy_seconds(settings)
        rates = [settings.steps / model.seconds(settings, num_hosts, NETWORKS[name], wire) for name, wire in columns]
        cells = [f"{rate:,.0f} ({100 * rate / ideal:.0f} %)" for rate in rates]
        rows.append([settings.ranks, num_hosts, f"{ideal:,.0f}", *cells])
    return markdown(["ranks", "hosts", "ideal", *(f"{name}, {wire}" for name, wire in columns)], rows)


if __name__ == "__main__":
    main()
