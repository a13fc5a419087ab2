"""The page as a browser sees it."""

import json
import shutil

import numpy as np
import pytest
import torch

from ppo.agents import find_agent, restore_model
from ppo.command_line import explicit_settings, parse_command_line
from ppo.envs import make_envs
from ppo.report.page import assemble
from tests.jobs import CARTPOLE, ppo
from tests.report import chromium
from tests.report.test_packing import unpack

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no Chromium")]

PONG, CART = "PongNoFrameskip-v4", "CartPole-v1"
HOSTILE = "</script><script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\">"


@pytest.fixture(scope="module")
def browser():
    with chromium.Chromium() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the reports of two shipped agents."""
    made = tmp_path_factory.mktemp("reports")
    for world in (PONG, CART, "ppo/ContinuousCartPole-v0"):
        assert ppo(made, f"--env_name={world}", "--mode=report").returncode == 0
    return made


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


def test_the_ball_can_be_erased_by_a_click_and_moved_by_a_drag_and_the_decision_changes(pong):
    pong.evaluate("player.seek(130)")
    before = pong.evaluate("byId('actions').textContent")
    where = """(() => {
      const editor = player.editor, now = editor.pixels.slice(3 * editor.size);
      for (let at = 20 * 84; at < 76 * 84; at++) {
        const found = now[at] > 200 && editor.objectAt(3, at % 84, Math.floor(at / 84), 0);
        if (found && found.length && found.length < 9) {
          editor.canvas.scrollIntoView();
          const { left, top, width } = editor.canvas.getBoundingClientRect(), size = width / 84;
          return [left + (at % 84 + 0.5) * size, top + (Math.floor(at / 84) + 0.5) * size];
        }
      }
    })()"""
    x, y = pong.evaluate(where)

    def drag(to):
        for kind, place in (("mousePressed", (x, y)), ("mouseMoved", to), ("mouseReleased", to)):
            pong.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", buttons=1, clickCount=1
            )
        pong.wait_for("!byId('eye-state').hidden")
        pong.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    drag((x + 60, y + 60))
    moved = pong.evaluate("byId('actions').textContent")
    assert moved != before
    pong.evaluate("[...byId('tools').children].find((one) => one.textContent === 'Put back').click()")
    assert pong.evaluate("byId('actions').textContent") == before
    assert pong.evaluate("byId('eye-state').hidden")
    pong.evaluate("[...byId('tools').children].find((one) => one.textContent === 'Erase').click()")
    drag((x, y))
    assert pong.evaluate("byId('actions').textContent") not in (before, moved)
    bright = "Array.from(player.editor.pixels.slice(3 * player.editor.size)).filter((pixel) => pixel > 200).length"
    erased = pong.evaluate(bright)
    pong.evaluate("player.seek(130)")
    assert pong.evaluate(bright) > erased


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
    for kind in ("keyDown", "keyUp"):
        pong.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
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
    for world in (PONG, CART):
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
    assert ppo(folder, *CARTPOLE, "--env_steps=2000").returncode == 0
    run = folder / "runs" / CART
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
    assert ppo(folder, f"--env_name={CART}", "--mode=report").returncode == 0
    return run / "report.html"


def test_nothing_in_a_run_folder_becomes_a_script(browser, hostile):
    browser.open(hostile)
    assert browser.evaluate("document.documentElement.dataset.ready") == "yes"
    assert browser.evaluate("document.title") == f"{CART} - run report"
    assert browser.evaluate("document.querySelectorAll('script').length") == 3
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    shown = browser.evaluate("byId('run').textContent + byId('notes').textContent")
    assert shown.count("document.title='caught'") >= 5  # it is shown, as text
    assert browser.complaints() == []


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
    old = (folder / f"runs/{CART}/report.html").read_text()
    data = old.partition('id="data">')[2].partition("<")[0]
    content, array = unpack(data)
    from ppo.report.packing import Pack

    pack = Pack()

    def packed(value):
        if isinstance(value, dict) and "at" in value:
            return pack.add_film(array(value)) if value.get("film") else pack.add(array(value))
        if isinstance(value, list):
            return [packed(item) for item in value]
        return {key: packed(item) for key, item in value.items()} if isinstance(value, dict) else value

    path = tmp_path / "report.html"
    path.write_bytes(assemble(HOSTILE, pack.encode(poisoned(packed(content)))))
    browser.open(path)
    assert browser.evaluate("document.documentElement.dataset.ready") == "yes"
    assert browser.evaluate("document.title") == HOSTILE
    assert browser.evaluate("document.querySelectorAll('script').length") == 3
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(browser, folder, width, dark):
    for world in (PONG, CART):
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
