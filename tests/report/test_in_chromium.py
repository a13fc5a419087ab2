"""The page as a browser sees it."""

import json
import math
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from ppo.agents import find_agent, restore_model
from ppo.command_line import explicit_settings, parse_command_line
from ppo.envs import make_envs
from ppo.outputs.manifest import seal
from ppo.report.packing import Pack
from ppo.report.page import assemble
from tests.jobs import CARTPOLE, ppo
from tests.report import chromium
from tests.report.test_packing import unpack

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no Chromium")]

ROOT = Path(__file__).parents[2]
PONG, CART, CONTINUOUS = "PongNoFrameskip-v4", "CartPole-v1", "ppo-ContinuousCartPole-v0"
TRAINED = "PongNoFrameskip-v4-seed11"
FOLDER = "<img src=x onerror=\"document.title='caught'\">"
HOSTILE = "</script><script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\">"


@pytest.fixture(scope="module")
def browser():
    with chromium.Chromium() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with reports: of shipped agents, and of the run in the docs, which has logs, by the scripts of today."""
    made = tmp_path_factory.mktemp("reports")
    for world in (PONG, CART, "ppo/ContinuousCartPole-v0"):
        assert ppo(made, f"--env_name={world}", "--mode=report").returncode == 0
    (made / "runs" / TRAINED).mkdir()
    rebuild(ROOT / "docs/pong-report.html", made / f"runs/{TRAINED}/report.html")
    return made


def rebuild(old, path, change=lambda content, pack: content, title="rebuilt"):
    """Write a report with the data of an old one; `change` gets the content and what packs arrays."""
    content, array = unpack(old.read_text().partition('id="data">')[2].partition("<")[0])
    pack = Pack()

    def packed(value):
        if isinstance(value, dict) and "at" in value:
            return pack.add_film(array(value)) if value.get("film") else pack.add(array(value))
        if isinstance(value, list):
            return [packed(item) for item in value]
        return {key: packed(item) for key, item in value.items()} if isinstance(value, dict) else value

    content = change(packed(content), pack)
    path.write_bytes(assemble(title, pack.encode(content)))


@pytest.fixture(scope="module")
def pong(folder):
    """A browser of its own with the page of a Pong agent, checked to its end."""
    with chromium.Chromium() as started:
        started.open(folder / f"runs/{PONG}/report.html")
        assert started.evaluate("document.documentElement.dataset.ready") == "yes"
        started.wait_for("document.documentElement.dataset.checked", seconds=240)
        yield started


def model_of(world):
    """Return a shipped agent's network."""
    flags = (f"--env_name={world}", "--mode=report")
    agent = find_agent(parse_command_line(flags), explicit_settings(flags))
    envs = make_envs(world, agent.config.world, indices=range(1), seed=0)
    return restore_model(agent, envs)


def numbers(browser, expression):
    return np.array(browser.evaluate(f"Array.from({expression})"))


def test_the_agent_in_the_page_acts_as_the_saved_one(pong):
    checked, agreed, worst = (
        float(pong.evaluate(f"document.documentElement.dataset.{name}")) for name in ("checked", "agreed", "worst")
    )
    assert checked == pong.evaluate("player.game.steps") > 1000
    assert agreed >= 0.95 * checked
    assert worst <= 0.02


def test_the_page_asks_for_nothing_and_breaks_no_rule_of_its_policy(pong):
    assert [url.partition(":")[0] for url in pong.requested()] == ["file"]
    assert pong.complaints() == []


def test_a_script_or_request_that_got_in_all_the_same_would_be_stopped_by_the_policy(browser, folder):
    browser.open(folder / f"runs/{CART}/report.html")
    browser.evaluate(
        "document.body.append("
        "Object.assign(document.createElement('script'), {textContent: 'document.title=\"caught\"'}),"
        "Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))"
    )
    assert browser.evaluate("fetch('http://127.0.0.1:9/').then(() => 'answered', () => 'stopped')") == "stopped"
    assert browser.evaluate("document.title") == f"{CART} - run report"
    assert len(browser.complaints()) >= 3


def test_what_is_shown_is_what_the_network_saw(pong):
    model = model_of(PONG)
    for step in (0, 2, 700):
        observation = numbers(pong, f"player.game.observationAt({step})").astype(np.uint8).reshape(1, 4, 84, 84)
        with torch.inference_mode():
            prediction = model(torch.from_numpy(observation))
        np.testing.assert_allclose(numbers(pong, f"player.game.outputsAt({step})"), prediction.action[0], atol=1e-3)


@pytest.mark.parametrize("tint", ["value", "action"])
def test_the_tint_is_the_gradient_of_the_value_or_of_the_best_actions_probability(pong, tint):
    model = model_of(PONG)
    observation = numbers(pong, "player.game.observationAt(300)").astype(np.float32).reshape(1, 4, 84, 84)
    pixels = torch.from_numpy(observation).requires_grad_()
    outputs, values = model(pixels)
    of = values.sum() if tint == "value" else outputs.log_softmax(-1).amax()
    (expected,) = torch.autograd.grad(of, pixels)
    pong.evaluate(f"player.tint = '{tint}'")
    found = numbers(pong, "player.gradientOf(player.network.run(player.game.observationAt(300)))")
    pong.evaluate("player.tint = 'value'")
    assert np.corrcoef(found, expected.flatten().numpy())[0, 1] > 0.999


def test_the_tint_of_continuous_actions_is_the_gradient_of_their_means(browser, folder):
    model = model_of("ppo/ContinuousCartPole-v0")
    browser.open(folder / "runs/ppo-ContinuousCartPole-v0/report.html")
    vector = torch.tensor([[0.1, -0.3, 0.02, 0.4]], requires_grad=True)
    mean = model.distribution.mean(model(vector).action).sum()
    (expected,) = torch.autograd.grad(mean, vector)
    browser.evaluate("player.tint = 'action'")
    found = numbers(browser, "player.gradientOf(player.network.run(Float32Array.of(0.1, -0.3, 0.02, 0.4)))")
    np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-3)


BALL = """(() => {
  const editor = player.editor, now = editor.pixels.slice(3 * editor.size);
  for (let at = 20 * 84; at < 76 * 84; at++) {
    const found = now[at] > 200 && editor.objectAt(3, at % 84, Math.floor(at / 84), 0);
    if (found && found.length && found.length < 9) return [at % 84, Math.floor(at / 84)];
  }
})()"""
# What the agent says, in probabilities, value and first layer.
SAID = "[byId('actions').textContent, byId('value').textContent, byId('activations').toDataURL()]"
BRIGHT = "Array.from(player.editor.pixels.slice(3 * player.editor.size)).filter((pixel) => pixel > 200).length"


def choose(browser, tool):
    browser.evaluate(f"[...byId('tools').children].find((one) => one.textContent === '{tool}').click()")


def ball_on_screen(browser):
    """Return where in the window the ball is, in the picture that the network sees."""
    column, row = browser.evaluate(BALL)
    left, top, size = browser.evaluate(
        "byId('eye').scrollIntoView(), (({left, top, width}) => [left, top, width / 84])"
        "(byId('eye').getBoundingClientRect())"
    )
    return left + (column + 0.5) * size, top + (row + 0.5) * size


def drawn(browser):
    """Wait until a change is drawn."""
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_ball_can_be_moved_erased_and_painted_by_a_pointer_and_what_the_agent_says_changes(pong):
    pong.evaluate("player.seek(130)")
    before, bright = pong.evaluate(SAID), pong.evaluate(BRIGHT)
    x, y = ball_on_screen(pong)

    def use(tool, to):
        """Return what the agent says, and how many pixels are bright, once a tool was dragged from the ball."""
        choose(pong, tool)
        for kind, place in (("mousePressed", (x, y)), ("mouseMoved", to), ("mouseReleased", to)):
            pong.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", buttons=1, clickCount=1
            )
        pong.wait_for("!byId('eye-state').hidden")
        drawn(pong)
        found = pong.evaluate(SAID), pong.evaluate(BRIGHT)
        choose(pong, "Put back")
        assert pong.evaluate("byId('eye-state').hidden")
        assert (pong.evaluate(SAID), pong.evaluate(BRIGHT)) == (before, bright)
        return found

    moved, erased, painted = use("Move", (x + 60, y + 60)), use("Erase", (x, y)), use("Paint", (x + 60, y + 60))
    for said, _ in (moved, erased, painted):
        # Probabilities, value and the first layer's activations.
        assert [after != was for after, was in zip(said, before, strict=True)] == [True] * 3
        assert " → " in said[1]
    assert moved[0] != erased[0] != painted[0] != moved[0]
    assert erased[1] < bright == moved[1] < painted[1] - 30


def test_keys_move_a_cursor_over_the_picture_and_apply_the_tool_there(pong):
    pong.evaluate("player.seek(130)")
    before, bright = pong.evaluate(SAID), pong.evaluate(BRIGHT)
    column, row = pong.evaluate(BALL)

    def go(right, down):
        for key, code, number in (
            ("ArrowRight", 39, right),
            ("ArrowLeft", 37, -right),
            ("ArrowDown", 40, down),
            ("ArrowUp", 38, -down),
        ):
            tens, ones = divmod(max(0, number), 10)
            for place in range(tens + ones):
                pong.press(key, code=code, shift=place < tens)

    def apply():
        pong.press("Enter", code=13)
        drawn(pong)

    choose(pong, "Erase")
    pong.evaluate("byId('tools').firstChild.focus()")
    assert pong.evaluate("byId('cursor').hidden")
    pong.evaluate("byId('eye').focus()")
    pong.press("ArrowLeft", code=37)
    at = re.match(r"Column (\d+), row (\d+): ", pong.evaluate("byId('spoken').textContent"))
    go(column - int(at[1]), row - int(at[2]))
    assert pong.evaluate("byId('spoken').textContent") == f"Column {column}, row {row}: an object."
    middle = "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
    (x, y), (left, top, size) = pong.evaluate(
        f"[{middle}(byId('cursor').getBoundingClientRect()),"
        "(({left, top, width}) => [left, top, width / 84])(byId('eye').getBoundingClientRect())]"
    )
    assert (x, y) == pytest.approx((left + (column + 0.5) * size, top + (row + 0.5) * size), abs=0.5)
    apply()
    assert pong.evaluate(SAID) != before and pong.evaluate(BRIGHT) < bright
    assert pong.evaluate("byId('spoken').textContent").startswith("Value ")
    go(-3, 0)
    assert pong.evaluate(BRIGHT) < bright  # and the way of the cursor is not wiped
    pong.evaluate("player.seek(130)")

    choose(pong, "Move")
    pong.evaluate("byId('eye').focus()")
    go(3, 0)
    pong.press("Enter", code=13)
    assert pong.evaluate("byId('cursor').className") == "holding"
    go(0, -12 if row > 40 else 12)
    apply()
    assert pong.evaluate("byId('cursor').className") == ""
    moved = pong.evaluate(SAID)
    assert moved != before and pong.evaluate(BRIGHT) == bright
    go(0, 5)
    drawn(pong)
    assert pong.evaluate(SAID) == moved  # it has been let go

    choose(pong, "Paint")
    pong.evaluate("byId('eye').focus()")
    apply()
    assert pong.evaluate(BRIGHT) > bright
    choose(pong, "Put back")
    assert pong.evaluate(SAID) == before
    pong.evaluate("byId('eye').blur()")
    assert pong.evaluate("byId('cursor').hidden")


def test_an_object_that_is_taken_up_while_the_game_plays_stays_in_hand(pong):
    choose(pong, "Move")
    before = pong.evaluate(f"player.seek(130), {SAID}")
    pong.evaluate(f"player.play(), player.editor.press(...{BALL})")
    step = pong.evaluate("new Promise((done) => setTimeout(() => done(player.step), 500))")
    assert step == 130
    assert pong.evaluate("byId('play').textContent") == "Play"
    pong.evaluate("player.editor.drag(42, 42)")
    drawn(pong)
    assert not pong.evaluate("byId('eye-state').hidden")
    assert pong.evaluate(SAID) != before
    choose(pong, "Put back")


@pytest.mark.parametrize("key", ["alt", "ctrl", "meta"])
def test_arrows_with_a_key_of_the_browser_are_the_browsers(pong, key):
    def is_left_to_the_browser(options):
        return pong.evaluate(
            "byId('eye').dispatchEvent("
            f"new KeyboardEvent('keydown', {{key: 'ArrowLeft', cancelable: true, {options}}}))"
        )

    before = pong.evaluate("byId('cursor').style.left")
    assert is_left_to_the_browser(f"{key}Key: true")
    assert pong.evaluate("byId('cursor').style.left") == before
    assert not is_left_to_the_browser("")
    assert pong.evaluate("byId('cursor').style.left") != before


def test_a_held_enter_takes_an_object_up_and_does_not_let_it_go(pong):
    pong.evaluate("player.seek(130)")
    choose(pong, "Look")
    x, y = ball_on_screen(pong)
    for kind in ("mousePressed", "mouseReleased"):
        pong.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    choose(pong, "Move")
    for is_repeated in (False, True, True):
        pong.call(
            "Input.dispatchKeyEvent", type="keyDown", key="Enter", windowsVirtualKeyCode=13, autoRepeat=is_repeated
        )
        assert pong.evaluate("byId('cursor').className") == "holding"
    pong.call("Input.dispatchKeyEvent", type="keyUp", key="Enter", windowsVirtualKeyCode=13)
    pong.press("Enter", code=13)
    assert pong.evaluate("byId('cursor').className") == ""


def test_a_click_into_the_trace_seeks_and_keys_play_step_by_step(pong):
    pong.evaluate("byId('trace').scrollIntoView()")
    left, top, width, height = pong.evaluate(
        "(({left, top, width, height}) => [left, top, width, height])"
        "(document.querySelector('#trace .u-over').getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        pong.call(
            "Input.dispatchMouseEvent", type=kind, x=left + width / 2, y=top + height / 2, button="left", clickCount=1
        )
    middle, steps = pong.evaluate("player.step"), pong.evaluate("player.game.steps")
    assert abs(middle - steps / 2) < 0.02 * steps
    pong.evaluate("byId('seek').focus()")
    pong.press("ArrowRight", code=39)
    assert pong.evaluate("player.step") == middle + 1
    assert f"step {middle + 1} of" in pong.evaluate("byId('seek').getAttribute('aria-valuetext')")


def test_it_plays_at_the_games_speed(pong):
    pong.evaluate("player.seek(0), player.play()")
    steps = pong.evaluate("new Promise((done) => setTimeout(() => done(player.step), 2000))")
    pong.evaluate("player.pause()")
    assert 20 <= steps <= 33  # 15 a second


def test_the_actions_of_the_game_are_counted(pong):
    shares = numbers(
        pong, "document.querySelectorAll('#taken-groups td.numeric'), (cell) => parseFloat(cell.textContent)"
    )
    taken = numbers(pong, "player.game.allActions").astype(int)
    np.testing.assert_allclose(shares, 100 * np.bincount(taken, minlength=6) / len(taken), atol=0.06)


def test_a_step_agrees_if_the_same_bits_are_set(browser, folder):
    browser.open(folder / f"runs/{CART}/report.html")
    for other, is_same in (([0.9, 0.6], True), ([0.6, 0.9], True), ([0.9, 0.4], False), ([0.4, 0.4], False)):
        groups = ", ".join(f"{{bits: true, probabilities: {bits}}}" for bits in ([0.8, 0.7], other))
        assert browser.evaluate(f"hasSameBest({groups})") == is_same
    assert browser.evaluate(
        "differenceOf([{bits: true, probabilities: [0.8, 0.7]}], [{bits: true, probabilities: [0.9, 0.4]}])"
    ) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gaussianDensity(0.1, -1)", "gaussianDensity(0.12, -1)"),
        ("gaussianDensity(0.1, -1)", "gaussianDensity(0.1, -1.1)"),
        ("betaDensity(2, 1)", "betaDensity(2.1, 1)"),
        ("betaDensity(20, 9)", "betaDensity(21, 10)"),
        ("betaDensity(2, 1)", "betaDensity(2, 1)"),
    ],
)
def test_densities_are_compared_by_a_close_bound_on_the_difference_of_a_probability(browser, folder, one, other):
    browser.open(folder / f"runs/{CONTINUOUS}/report.html")
    exact, bound = browser.evaluate(
        f"(() => {{ const one = {one}, other = {other}, points = 100000; let sum = 0;"
        "for (let at = 0; at < points; at++) {"
        "  const x = 3 * (at + 0.5) / points - 1; sum += Math.abs(one.density(x) - other.density(x)); }"
        "return [1.5 * sum / points, differenceOf([one], [other])]; })()"
    )
    assert exact <= bound <= 1.6 * exact


def test_densities_of_several_dimensions_are_compared_by_a_bound_for_sets_in_all_of_them(browser, folder):
    """With equal deviations the exact distance is known: it depends on the distance of the means, in deviations."""
    browser.open(folder / f"runs/{CONTINUOUS}/report.html")
    shifts, log_deviation = (0.06, 0.02, -0.05), -1.0
    one, other = (
        "[" + ", ".join(f"gaussianDensity({mean}, {log_deviation})" for mean in means) + "]"
        for means in ((0.0, 0.0, 0.0), shifts)
    )
    distance = math.hypot(*shifts) / math.exp(log_deviation)
    exact, bound = math.erf(distance / 8**0.5), math.sqrt(1.0 - math.exp(-(distance**2) / 4.0))
    assert browser.evaluate(f"differenceOf({one}, {other})") == pytest.approx(bound, rel=1e-6)
    alone = browser.evaluate(f"{one}.map((group, number) => differenceOf([group], [{other}[number]]))")
    assert max(alone) < exact < bound < 1.6 * exact


def test_densities_of_several_dimensions_of_beta_distributions_are_compared_together_too(browser, folder):
    browser.open(folder / f"runs/{CONTINUOUS}/report.html")
    one, other = "[betaDensity(2, 1), betaDensity(20, 9)]", "[betaDensity(2.1, 1), betaDensity(21, 10)]"
    first, second = browser.evaluate(f"{one}.map((group, number) => differenceOf([group], [{other}[number]]))")
    assert browser.evaluate(f"differenceOf({one}, {other}) ** 2") == pytest.approx(
        first**2 + second**2 - first**2 * second**2
    )


def test_a_bound_is_rounded_up(browser, folder):
    browser.open(folder / f"runs/{CONTINUOUS}/report.html")
    shown = browser.evaluate("[0.00331, 0.0991, 1, 0].map((value) => short(roundedUp(value)))")
    assert shown == ["0.0034", "0.1", "1", "0"]


def test_a_deviation_that_differs_from_the_saved_agents_is_noticed(browser, folder):
    browser.open(folder / f"runs/{CONTINUOUS}/report.html")
    assert float(browser.wait_for("document.documentElement.dataset.worst")) < 0.001
    browser.evaluate(
        "delete document.documentElement.dataset.checked;"
        "player.network.policy.filter((layer) => layer instanceof Append)"
        ".forEach((layer) => { layer.values = layer.values.map((value) => value + 0.1); });"
        "check(player.game, player.network)"
    )
    browser.wait_for("document.documentElement.dataset.checked")
    assert 0.02 < float(browser.evaluate("document.documentElement.dataset.worst")) < 0.1
    assert browser.evaluate("document.documentElement.dataset.agreed === document.documentElement.dataset.checked")


@pytest.mark.parametrize("layers", ["none", "linear"])
def test_an_encoder_without_layers_has_no_first_layer_and_one_without_an_activation_has(
    browser, folder, tmp_path, layers
):
    def change(content, pack):
        def linear(inputs, outputs):
            weight = np.arange(inputs * outputs, dtype=np.float32).reshape(outputs, inputs) / 10
            return {
                "kind": "linear",
                "weight": {"numbers": pack.add(weight)},
                "bias": pack.add(np.zeros(outputs, np.float32)),
            }

        actor = [] if layers == "none" else [linear(4, 3)]
        heads = {"policy": [linear(3 if actor else 4, 2)], "value": [linear(3 if actor else 4, 1)]}
        network = {**content["network"], "scaling": None, "actor": actor, "critic": None, **heads}
        return {**content, "network": network}

    rebuild(folder / f"runs/{CART}/report.html", tmp_path / "report.html", change)
    browser.open(tmp_path / "report.html")
    assert browser.evaluate("document.documentElement.dataset.ready") == "yes"
    assert browser.evaluate("byId('first-layer').hidden") == (layers == "none")
    assert not browser.evaluate("byId('sweep').hidden")
    if layers == "linear":
        assert browser.evaluate("byId('activations').width") == 3
        first = numbers(browser, "player.network.run(Float32Array.of(1, 2, 3, 4)).first")
        np.testing.assert_allclose(first, [2.0, 6.0, 10.0], rtol=1e-5)
    assert browser.complaints() == []


def test_a_curve_that_appears_where_another_vanishes_has_its_own_name_in_the_legend(browser, folder):
    browser.open(folder / f"runs/{CART}/report.html")
    labels = browser.evaluate(
        "(() => { const holder = element('div'); document.body.append(holder);"
        "const series = [{ label: 'first', values: [1, 2], colour: 'c1' },"
        "  { label: 'second', values: [null, null], colour: 'c2' }];"
        "const state = chart(holder, { x: [0, 1], xLabel: 'x', label: 'test', series });"
        "replaceData(state, [0, 1], [[null, null], [3, 4]]);"
        "return [...holder.querySelectorAll('.u-legend .u-label')].map((one) => one.textContent); })()"
    )
    assert labels == ["x", "second"]


SWEEP = "Array.from(player.sweep.plot.data[1])"


def test_the_curve_over_an_entry_is_of_now_also_after_the_window_was_resized(browser, folder):
    browser.open(folder / f"runs/{CART}/report.html")
    before = browser.evaluate(SWEEP)
    browser.evaluate("player.seek(30)")
    now = browser.evaluate(SWEEP)
    assert now != before
    width = browser.evaluate("player.sweep.plot.width")
    browser.call("Emulation.setDeviceMetricsOverride", width=700, height=900, deviceScaleFactor=1, mobile=False)
    browser.wait_for(f"player.sweep.plot.width < {width}")
    assert browser.evaluate(SWEEP) == now


def test_the_curve_over_an_entry_is_named_after_it_and_of_the_step_where_the_game_was_paused(browser, folder):
    browser.open(folder / f"runs/{CART}/report.html")
    browser.evaluate("document.querySelectorAll('.pick')[2].click()")
    name = browser.evaluate("player.game.entryNames[2]")
    assert name in browser.evaluate("byId('sweep-chart').getAttribute('aria-label')")
    browser.evaluate("player.play()")
    browser.wait_for("player.step % 6 === 3")
    browser.evaluate("player.pause()")
    shown = browser.evaluate(SWEEP)
    browser.evaluate("player.seek(player.step)")
    assert browser.evaluate(SWEEP) == shown


def test_a_run_with_logs_has_curves_over_steps_or_minutes_and_shares_of_time(browser, folder):
    browser.open(folder / f"runs/{TRAINED}/report.html")
    titles = browser.evaluate("[...document.querySelectorAll('#curves h3')].map((one) => one.textContent)")
    assert titles[:3] == ["Return", "Entropy", "Change per update (KL)"] and "Speed" in titles and len(titles) == 10
    assert browser.evaluate("document.querySelectorAll('#curves canvas').length") == 10
    legends = browser.evaluate("[...document.querySelectorAll('#curves .u-legend')].map((one) => one.textContent)")
    assert any("speed" in legend and "limit" in legend for legend in legends)
    shares = browser.evaluate("[...document.querySelectorAll('#phases .legend li')].map((one) => one.textContent)")
    assert {share.rpartition(" ")[0].rpartition(" ")[0] for share in shares} >= {"world", "acting", "learning"}
    assert sum(int(share.split()[-2]) for share in shares) == pytest.approx(100, abs=2)
    drawn_over = (
        "charts.filter(({holder}) => byId('curves').contains(holder))"
        ".map(({plot}) => [plot.axes[0].label, plot.data[0].at(-1)])"
    )
    assert browser.evaluate(drawn_over)[1] == ["steps", 565_250]
    browser.evaluate("byId('by-minutes').click()")
    assert browser.evaluate("byId('by-minutes').getAttribute('aria-pressed')") == "true"
    label, end = browser.evaluate(drawn_over)[1]
    assert label == "minutes" and end == pytest.approx(33.2, abs=0.1)
    assert browser.complaints() == []


def test_a_charts_numbers_open_as_a_table(browser, folder):
    browser.open(folder / f"runs/{TRAINED}/report.html")
    browser.evaluate("byId('by-minutes').click(), document.querySelector('#curves summary').click()")
    browser.wait_for("document.querySelector('#curves details table') !== null")
    rows = browser.evaluate(
        "[...document.querySelectorAll('#curves details table tr')]"
        ".map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    assert rows[0] == ["minutes", "a game", "mean of the last 100 games", "evaluation"] and len(rows) == 11
    assert float(rows[-1][0]) == pytest.approx(33.2, abs=0.1) and float(rows[-1][2]) == 18


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", [TRAINED, PONG, CART, CONTINUOUS])
def test_axe_finds_nothing_serious(browser, folder, name, dark):
    browser.open(folder / f"runs/{name}/report.html", dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.evaluate("player.change(player.game.observationAt(1)), byId(player.game.isImage ? 'eye' : 'seek').focus()")
    browser.wait_for("!byId('before-help').hidden")
    assert browser.axe_findings() == []


def test_axe_would_find_a_control_without_a_name_and_text_too_faint_to_read(browser, folder):
    browser.open(folder / f"runs/{CART}/report.html")
    browser.evaluate("byId('seek').removeAttribute('aria-label'), byId('name').style.color = colour('line')")
    found = {finding["id"]: finding["where"] for finding in browser.axe_findings()}
    assert found == {"label": ["#seek"], "color-contrast": ["#name"]}


def test_a_vector_can_be_moved_by_sliders_and_continuous_actions_are_drawn(browser, folder):
    browser.open(folder / "runs/ppo-ContinuousCartPole-v0/report.html")
    browser.wait_for("document.documentElement.dataset.checked")
    assert browser.evaluate("document.documentElement.dataset.agreed === document.documentElement.dataset.checked")
    before = browser.evaluate("byId('actions').textContent")
    browser.evaluate(
        "(() => { const slider = document.querySelector('#entries input'); slider.value = slider.max;"
        "slider.dispatchEvent(new Event('input')); })()"
    )
    browser.wait_for("!byId('entries-state').hidden")
    assert browser.evaluate("byId('actions').textContent") != before
    assert browser.complaints() == []


def test_every_control_has_a_name_and_every_picture_a_description(browser, folder):
    for world in (PONG, CART, TRAINED):
        browser.open(folder / f"runs/{world}/report.html")
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node["ignored"]]
        kinds = {"button", "slider", "checkbox", "combobox", "image", "link"}
        controls = [node for node in shown if node["role"]["value"] in kinds]
        assert len(controls) > 10
        assert [node["role"]["value"] for node in controls if not node.get("name", {}).get("value")] == []
        assert browser.evaluate("document.querySelectorAll('main').length") == 1


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The report of a run in whose folder every text has been replaced by markup and scripts."""
    folder = tmp_path_factory.mktemp("hostile")
    assert ppo(folder, *CARTPOLE, "--env_steps=2000", f"--run_dir={FOLDER}").returncode == 0
    run = folder / FOLDER / CART
    facts = {name: HOSTILE for name in ("started", "command", "commit", "code")} | {"hosts": [HOSTILE]}
    (run / "config.json").write_text(json.dumps(facts))
    (run / "messages.txt").write_text(f"WARNING: {HOSTILE}\n")
    rows = (run / "progress.csv").read_text().splitlines()
    rows[2] = ",".join([HOSTILE] * (rows[0].count(",") + 1))
    rows[0] += f",{HOSTILE}"
    (run / "progress.csv").write_text("\n".join(rows) + "\n")
    with open(run / "episodes.csv", "a") as file:
        file.write(f"{HOSTILE}\n")
    (run / "evaluation.json").write_text(
        json.dumps({"return_mean": 1.0, "episodes": 1, "env_steps": 1, "act": HOSTILE})
    )
    poison_manifest(max((folder / "checkpoints" / CART).glob("step_*")))
    assert ppo(folder, f"--env_name={CART}", "--mode=report", f"--run_dir={FOLDER}").returncode == 0
    return run / "report.html"


def poison_manifest(checkpoint):
    """Put scripts where a manifest has texts, and seal it again, as a forger would."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"], manifest["machine"] = (
        {"torch": HOSTILE, HOSTILE: "1"},
        {"architecture": HOSTILE, HOSTILE: "1"},
    )
    manifest["manifest_sha256"] = seal(manifest)
    path.write_text(json.dumps(manifest))


def assert_no_script(browser):
    assert browser.evaluate("document.documentElement.dataset.ready") == "yes"
    assert browser.evaluate("document.querySelectorAll('script').length") == 3
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.complaints() == []


def test_nothing_in_a_run_folder_becomes_a_script(browser, hostile):
    browser.open(hostile)
    assert browser.evaluate("document.title") == f"{CART} - run report"
    assert_no_script(browser)
    facts = dict(
        browser.evaluate(
            "[...document.querySelectorAll('#facts dt')].map((one) => [one.textContent, one.nextSibling.textContent])"
        )
    )
    for fact in ("started", "command", "hosts", "processor", "versions", "commit", "code"):
        assert HOSTILE in facts[fact]  # it is shown, as text
    assert HOSTILE in browser.evaluate("byId('notes').textContent")
    assert FOLDER in browser.evaluate("byId('settings').textContent")


def test_nothing_in_a_shipped_agents_card_becomes_a_script(browser, tmp_path):
    shipped = tmp_path / "pretrained"
    shutil.copytree(ROOT / "checkpoints/pretrained" / CART, shipped / CART)
    poison_manifest(shipped / CART)
    card = dict.fromkeys(("env_name", "started", "command", "commit", "code"), HOSTILE) | {"hosts": [HOSTILE]}
    (shipped / CART / "card.json").write_text(json.dumps(card))
    with mock.patch("ppo.agents.SHIPPED_FOLDER", shipped):
        assert ppo(tmp_path, f"--env_name={CART}", "--mode=report").returncode == 0
    browser.open(tmp_path / f"runs/{CART}/report.html")
    assert_no_script(browser)
    shown = browser.evaluate("byId('facts').textContent")
    assert "shipped with the program" in shown and shown.count(HOSTILE) >= 9


def test_names_in_the_data_itself_are_text_too(browser, folder, tmp_path):
    """A page whose every string is hostile: as if any file of a run could choose them."""

    def poisoned(value):
        if isinstance(value, str):
            return value if value in kept else HOSTILE
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return {key: poisoned(item) for key, item in value.items()} if isinstance(value, dict) else value

    # What the page's own scripts go by, not what they show.
    kept = {"f4", "i1", "u1", "vector", "image", "categorical", "linear", "tanh", "relu", "convolution"}
    path = tmp_path / "report.html"
    for name in (CART, TRAINED):
        old = folder / f"runs/{name}/report.html"
        rebuild(old, path, lambda content, pack: poisoned(content), title=HOSTILE)
        browser.open(path)
        assert browser.evaluate("document.title") == HOSTILE
        assert_no_script(browser)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(browser, folder, width, dark):
    for world in (PONG, CART, TRAINED):
        browser.open(folder / f"runs/{world}/report.html", width=width, dark=dark)
        assert browser.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_reports_of_small_networks_are_below_2_mb(folder):
    for path in folder.rglob("report.html"):
        assert path.stat().st_size < 2_000_000


def test_the_folder_can_be_moved_and_the_page_still_opens(browser, folder, tmp_path):
    shutil.copy(folder / f"runs/{CART}/report.html", tmp_path / "elsewhere.html")
    browser.open(tmp_path / "elsewhere.html")
    assert browser.evaluate("document.documentElement.dataset.ready") == "yes"
