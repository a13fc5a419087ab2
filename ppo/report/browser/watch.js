"use strict";

/* The page of a watcher: shows what the stream tells, each picture at its time, and sends commands. */

const MOST_WAITING = 6;
const MILLISECONDS_AHEAD = 40;
const MOST_MILLISECONDS_BEHIND = 400;
const MILLISECONDS_BETWEEN_TRACES = 100;
const MOST_TRACED = 900;
const MILLISECONDS_OF_PACE = 3000;
const SLOW = 0.85;
const MOST_ENTRIES = 64;

const WATCHED = [
  ["Return", "rollout/return_mean", "c1", "The mean raw return of the last 100 games of training, and of evaluations where there are any."],
  ...CURVES,
  ["Speed", "time/steps_per_second", "c1", "Agent steps per second over all environments, everything included."],
];

/** Pictures that wait for their time. */
class Film {
  constructor(show) {
    Object.assign(this, { show, waiting: [], ends: 0, drawn: 0 });
    const tick = (now) => {
      this.tick(now);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  /** Take pictures, or what goes with none, that last so many milliseconds together. */
  add(items, milliseconds) {
    const now = performance.now();
    let start = this.ends;
    // After a gap some time is kept in hand; of what comes too fast, the newest is shown.
    if (start < now) start = now + Math.min(MILLISECONDS_AHEAD, milliseconds);
    if (start > now + MOST_MILLISECONDS_BEHIND + milliseconds) {
      this.waiting.length = 0;
      start = now;
    }
    items.forEach((item, place) => this.waiting.push({ item, due: start + place * milliseconds / items.length }));
    this.ends = start + milliseconds;
  }

  tick(now) {
    const { waiting } = this;
    if (!waiting.length || waiting[0].due > now + 4) return;
    let { item } = waiting.shift();
    // A picture is passed over that comes too late, but no decision.
    while (waiting.length && waiting[0].due < now - 20) item = { beat: item.beat, ...waiting.shift().item };
    this.drawn++;
    this.show(item);
  }
}

class Watcher {
  constructor(content) {
    byId("name").textContent = content.name;
    Object.assign(this, { state: null, source: null, waiting: 0, shown: null, policy: null, policyOf: "", columns: null, progress: null });
    this.pace = { since: performance.now(), seconds: 0 };
    this.trace = { game: -1, steps: [], values: [], rewards: [], drawnAt: 0, isNew: false };
    this.film = new Film((item) => this.show(item));
    this.setUpControls();
    this.setUpTrace();
    this.setUpCurve();
    document.addEventListener("visibilitychange", () => document.hidden ? this.disconnect() : this.connect());
    setInterval(() => {
      this.showTiles();
      this.showPace();
    }, 1000);
    this.connect();
  }

  connect() {
    if (this.source || document.hidden) return;
    const source = new EventSource("stream");
    this.source = source;
    // Messages are unpacked one after another, so that none overtakes another one.
    let turn = Promise.resolve();
    const listen = (kind, take) => source.addEventListener(kind, ({ data }) => {
      if (kind === "beat" && this.waiting > MOST_WAITING) return;
      this.waiting++;
      turn = turn.then(() => unpack(data)).then(({ content, array }) => {
        if (this.source === source) take(content, array);
      }).catch((error) => this.tell(`A message could not be shown: ${error.message}`)).finally(() => this.waiting--);
    });
    listen("beat", (content, array) => this.takeBeat(content, array));
    listen("state", (content) => this.takeState(content));
    listen("progress", (content, array) => this.takeProgress(content, array));
    source.addEventListener("open", () => this.tell(""));
    source.addEventListener("replaced", () => {
      this.disconnect();
      this.tell("The game is shown in other windows now. ", element("button", { type: "button", text: "Show it here", onclick: () => {
        this.tell("");
        this.connect();
      } }));
    });
    source.addEventListener("error", () => {
      const isOver = source.readyState === EventSource.CLOSED;
      if (isOver) this.disconnect();
      this.tell(isOver
        ? "The watcher does not know this page any more. Open the address that it has printed."
        : "The watcher does not answer; it may have ended. Trying again.");
    });
  }

  disconnect() {
    if (this.source) this.source.close();
    this.source = null;
  }

  /** Say what is the matter with the connection, or that nothing is. */
  tell(text, ...others) {
    byId("trouble").replaceChildren(text, ...others);
    byId("trouble").hidden = !text;
  }

  async send(command) {
    try {
      const answer = await fetch("do", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(command) });
      if (!answer.ok) this.tell(await answer.text());
    } catch {
      this.tell("The watcher does not answer; it may have ended.");
    }
  }

  setUpControls() {
    byId("pause").addEventListener("click", () => this.send({ pause: !(this.state && this.state.isPaused) }));
    byId("forth").addEventListener("click", () => this.send({ step: true }));
    byId("restart").addEventListener("click", () => this.send({ restart: true }));
    byId("speed").addEventListener("change", () => this.send({ speed: Number(byId("speed").value) }));
    byId("act").addEventListener("change", () => this.send({ act: byId("act").value }));
    byId("checkpoint").addEventListener("change", () => this.send({ checkpoint: byId("checkpoint").value }));
    document.addEventListener("keydown", (event) => {
      if (event.key !== " " || event.target !== document.body) return;
      event.preventDefault();
      byId("pause").click();
    });
  }

  takeState(state) {
    const before = this.state;
    this.state = state;
    byId("name").textContent = state.name;
    const where = state.isShipped ? "the agent that comes with the program"
      : `the checkpoint at ${state.steps.toLocaleString("en")} steps`;
    byId("summary").textContent = `${state.world}: ${where}${state.wish === "latest" && !state.isShipped ? ", the newest one" : ""}.`;
    byId("note").textContent = [state.note, ...state.notes].filter(Boolean).join(" ");
    byId("note").hidden = !byId("note").textContent;
    byId("pause").textContent = state.isPaused ? "Play" : "Pause";
    byId("forth").disabled = !state.isPaused;
    setOptions("speed", state.speeds.map(String), (speed) => `${({ 0.25: "¼", 0.5: "½" })[speed] || speed}×`, state.speed);
    setOptions("act", state.rules, (rule) => ({ sample: "sampled", mode: "the most probable", mean: "the mean" })[rule] || rule, state.rule);
    setOptions("checkpoint", state.wishes, (wish) => /^\d+$/.test(wish)
      ? `at ${Number(wish).toLocaleString("en")} steps` : ({ latest: "the newest", shipped: "shipped with the program", best: "the best" })[wish] || wish,
    state.wish);
    const policyOf = JSON.stringify([state.distribution, state.actionNames]);
    if (policyOf !== this.policyOf) Object.assign(this, { policyOf, policy: null });
    if (!before || before.isPaused !== state.isPaused) {
      this.pace = { since: performance.now(), seconds: 0 };
      this.speak();
    }
    this.showGames(state.games);
    this.redraw();
  }

  takeBeat(content, array) {
    const beat = { ...content, values: array(content.values), rewards: array(content.rewards),
      outputs: array(content.outputs), action: Array.from(array(content.action)) };
    if (content.image) beat.image = { pixels: array(content.image), shape: content.image.shape };
    if (content.vector) beat.vector = array(content.vector);
    const items = [];
    if (content.pictures) {
      const pixels = array(content.pictures), [number, height, width, parts] = content.pictures.shape;
      const colours = parts ? null : coloursOf(array(content.palette)), size = height * width * (parts || 1);
      for (let place = 0; place < number; place++) {
        items.push({ width, height, colours, pixels: pixels.subarray(place * size, (place + 1) * size) });
      }
    }
    if (!items.length) items.push({});
    items[0].beat = beat;
    this.pace.seconds += content.seconds;
    this.extendTrace(beat);
    this.film.add(items, 1000 * content.seconds);
  }

  /** Say how much slower than asked for the game has been, if it was. */
  showPace() {
    const now = performance.now(), { since, seconds } = this.pace;
    if (now - since < MILLISECONDS_OF_PACE) return;
    const share = 1000 * seconds / (now - since), plays = this.source && this.state && !this.state.isPaused;
    byId("pace").textContent = plays && seconds && share < SLOW
      ? `at ${short(share)} of that speed: the machine is busy` : "";
    this.pace = { since: now, seconds: 0 };
  }

  /** Show a picture, and the decision that led to it and those after it. */
  show({ pixels, width, height, colours, beat }) {
    if (pixels) {
      byId("screen-view").hidden = false;
      byId("screen-view").style.flexBasis = width > height ? "460px" : "330px";
      paintScreen(byId("screen"), pixels, width, height, colours);
    }
    if (beat) {
      this.shown = beat;
      this.redraw();
      if (beat.isOver) {
        byId("result").textContent = `over: ${short(beat.return)}`;
        byId("spoken").textContent = `The game is over, return ${short(beat.return)}.`;
      }
      byId("result").hidden = !beat.isOver;
    }
    const now = performance.now();
    if (this.trace.isNew && now - this.trace.drawnAt > MILLISECONDS_BETWEEN_TRACES) {
      this.trace.drawnAt = now;
      this.drawTrace();
    }
  }

  /** Show the newest decision again, as after a change of colours. */
  redraw() {
    const { shown: beat, state } = this;
    if (!beat || !state) return;
    if (!this.policy) {
      byId("actions").replaceChildren();
      const of = { distribution: state.distribution, actionNames: state.actionNames, numOutputs: beat.outputs.length };
      this.policy = new PolicyView(byId("actions"), of);
    }
    this.said = this.policy.show(beat.outputs, null, beat.action);
    const value = beat.values[beat.values.length - 1];
    byId("value").textContent = short(value);
    byId("step").textContent = `step ${beat.length.toLocaleString("en")}, return so far ${short(beat.return)}`;
    if (state.isPaused) this.speak();
    if (beat.image) this.showImage(beat.image, state.channelsPerPicture);
    if (beat.vector) this.showVector(beat.vector, state.entryNames);
    byId("eye-view").hidden = !beat.image;
    byId("entries-view").hidden = !beat.vector;
  }

  speak() {
    if (!this.shown || !this.state || !this.state.isPaused) return;
    const { values, length } = this.shown;
    byId("spoken").textContent = `Step ${length}. Value ${short(values[values.length - 1])}. ${this.said || ""}.`;
  }

  showImage({ pixels, shape: [channels, height, width] }, group) {
    const size = height * width, number = channels / group;
    if (byId("stack").childElementCount !== number) {
      byId("stack").replaceChildren(...Array.from({ length: number }, (_, place) => {
        const ago = number - 1 - place;
        return element("span", {}, [
          element("canvas", { role: "img", "aria-label": ago ? `${ago} steps before` : "now" }),
          element("small", { text: ago ? `t−${ago}` : "t" })]);
      }));
      byId("stack").hidden = number < 2;
    }
    const canvases = [...byId("stack").querySelectorAll("canvas"), byId("eye")];
    canvases.forEach((canvas, place) => {
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      paintPicture(canvas, pixels, Math.min(place, number - 1) * group, group, size, null);
    });
  }

  showVector(vector, names) {
    const number = Math.min(vector.length, MOST_ENTRIES);
    if (!this.entries || this.entries.length !== number) {
      this.entries = Array.from({ length: number }, (_, place) => {
        const bar = element("span", { class: "bar" }), zero = element("span", { class: "zero" });
        const figure = element("td", { class: "numeric" });
        const row = element("tr", {}, [element("th", { scope: "row", text: names[place] || `entry ${place}` }),
          element("td", { class: "wide", "aria-hidden": "true" }, [element("span", { class: "track" }, [bar, zero])]), figure]);
        return { row, bar, zero, figure, low: -1e-6, high: 1e-6 };
      });
      byId("entries").replaceChildren(element("table", { class: "bars" }, this.entries.map(({ row }) => row)));
      const more = vector.length - number;
      if (more) byId("entries").append(element("p", { class: "help", text: `and ${more} more` }));
    }
    this.entries.forEach((entry, place) => {
      const value = vector[place];
      entry.low = Math.min(entry.low, value);
      entry.high = Math.max(entry.high, value);
      const share = (x) => 100 * (x - entry.low) / (entry.high - entry.low);
      entry.bar.style.left = `${share(Math.min(0, value))}%`;
      entry.bar.style.width = `${Math.abs(share(value) - share(0))}%`;
      entry.zero.style.left = `${share(0)}%`;
      entry.figure.textContent = value.toFixed(3);
    });
  }

  setUpTrace() {
    this.marks = [];
    this.traceChart = chart(byId("trace"), {
      x: [], xLabel: "step", height: 150, legend: false, label: "The value over the steps of the game",
      series: [{ label: "value", values: [], colour: "c1", isKept: true }],
      cursor: { drag: { x: false, y: false } },
      hooks: { draw: [(plot) => drawRewards(plot, this.marks)] },
    });
  }

  extendTrace(beat) {
    const { trace } = this;
    if (trace.game !== beat.game) Object.assign(trace, { game: beat.game, steps: [], values: [], rewards: [] });
    beat.values.forEach((value, place) => {
      trace.steps.push(beat.length - beat.values.length + 1 + place);
      trace.values.push(value);
      trace.rewards.push(beat.rewards[place]);
    });
    const tooMany = trace.steps.length - MOST_TRACED;
    if (tooMany > 0) for (const list of [trace.steps, trace.values, trace.rewards]) list.splice(0, tooMany);
    trace.isNew = true;
  }

  drawTrace() {
    const { steps, values, rewards } = this.trace, { options, plot } = this.traceChart;
    const rewarded = steps.map((step, place) => ({ step, reward: rewards[place] })).filter(({ reward }) => reward !== 0);
    this.marks = rewarded.length <= steps.length / 4 ? rewarded : [];
    byId("marks-help").hidden = !this.marks.length;
    options.x = steps;
    options.series[0].values = values;
    plot.setData([steps, values]);
    this.trace.isNew = false;
  }

  setUpCurve() {
    setOptions("curve", WATCHED.map((_, place) => String(place)), (place) => WATCHED[place][0], "0");
    byId("curve").addEventListener("change", () => this.showCurve());
  }

  takeProgress(content, array) {
    const columns = Object.entries(content.columns).map(([name, reference]) => [
      name, Array.from(array(reference), (value) => Number.isNaN(value) ? null : value)]);
    this.columns = columns.length ? Object.fromEntries(columns) : null;
    this.progress = { goal: content.goal, at: performance.now() - 1000 * content.secondsSince };
    this.showTiles();
    this.showCurve();
  }

  showTiles() {
    if (!this.progress) return; // no message about the training yet
    const { columns, progress } = this, steps = columns ? last(columns.env_steps) : null;
    const hasEnded = progress.goal !== null && steps >= progress.goal;
    byId("learning-lead").textContent = steps === null
      ? "No training under this name has written a log yet." : "From progress.csv, which the training writes after every update.";
    const tiles = steps === null ? [] : [
      ["Return", short(last(columns["rollout/return_mean"])), "mean of the last 100 games"],
      ["Steps", short(steps), progress.goal > steps ? `of ${short(progress.goal)}` : ""],
      ["Time", duration(last(columns["time/seconds"])), ""],
      ["Speed", short(last(columns["time/steps_per_second"])), "steps per second"],
      ["Last update", `${duration((performance.now() - progress.at) / 1000)} ago`, hasEnded ? "the training has ended" : ""],
    ];
    byId("tiles").replaceChildren(...tiles.map(([label, value, note]) => element("div", { class: "tile" }, [
      element("span", { class: "label", text: label }), element("strong", { text: value }), element("span", { class: "note", text: note })])));
  }

  showCurve() {
    const { columns } = this, hasCurve = columns !== null && columns.env_steps.length > 1;
    byId("curve-card").hidden = byId("choice-of-curve").hidden = !hasCurve;
    if (!hasCurve) return;
    const which = Number(byId("curve").value), [title, column, shade, help] = WATCHED[which];
    const series = [{ label: which ? title.toLowerCase() : "training", values: columns[column], colour: shade, isKept: true }];
    const evaluations = columns["evaluation/return_mean"], hasEvaluations = !which && last(evaluations) !== null;
    if (hasEvaluations) series.push({ label: "evaluation", values: evaluations, colour: "c4", isKept: true });
    byId("curve-help").textContent = help;
    const options = { x: columns.env_steps, xLabel: "steps", series, height: 220, legend: hasEvaluations, label: `${title}. ${help}` };
    if (!this.curveChart) this.curveChart = chart(byId("curve-chart"), options);
    else {
      this.curveChart.options = options;
      draw(this.curveChart);
    }
  }

  showGames(games) {
    byId("games-section").hidden = !games.length;
    const header = element("tr", {}, ["return", "steps", "agent at", "action"].map((text) => element("th", { scope: "col", text })));
    const rows = games.slice().reverse().map((game) => element("tr", {}, [
      `${short(game.return)}${game.isCut ? " (cut)" : ""}`, game.length.toLocaleString("en"),
      `${game.steps.toLocaleString("en")} steps`, game.act].map((text) => element("td", { class: "numeric", text }))));
    byId("games").replaceChildren(element("table", { class: "games" }, [
      element("caption", { class: "hidden", text: "Games that were watched, the newest first" }), header, ...rows]));
  }
}

/** Give a choice its options, if they are others than before, and show which is chosen. */
function setOptions(id, values, label, chosen) {
  const select = byId(id), known = select.dataset.values;
  const now = JSON.stringify(values);
  if (known !== now) {
    select.dataset.values = now;
    select.replaceChildren(...values.map((value) => element("option", { value, text: label(value) })));
  }
  select.value = String(chosen);
}

/** Return the last number of a column that has any. */
function last(column) {
  for (let place = column.length - 1; place >= 0; place--) if (column[place] !== null) return column[place];
  return null;
}

/** Return colours (K, 3) as pixels. */
function coloursOf(palette) {
  const colours = new Uint32Array(256);
  for (let place = 0; 3 * place < palette.length; place++) {
    const [red, green, blue] = palette.subarray(3 * place, 3 * place + 3);
    colours[place] = (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
  }
  return colours;
}

/** Paint a picture of numbers of colours, or of three parts a pixel. */
function paintScreen(canvas, pixels, width, height, colours) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
  const target = new Uint32Array(image.data.buffer);
  for (let at = 0; at < target.length; at++) {
    target[at] = colours ? colours[pixels[at]]
      : (255 << 24 | pixels[3 * at + 2] << 16 | pixels[3 * at + 1] << 8 | pixels[3 * at]) >>> 0;
  }
  pen.putImageData(image, 0, 0);
}

let watcher = null;

drawPage((content) => {
  // The address would end up in the browser's history, and the cookie does as well.
  history.replaceState(null, "", location.pathname);
  watcher = new Watcher(content);
}, () => { if (watcher) watcher.redraw(); });
