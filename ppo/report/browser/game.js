"use strict";

/* The game: what was seen, said and done, step by step, and the agent that can be asked again. */

const STEPS_BETWEEN_SWEEPS = 6;

/** The recording, with the arrays of its steps. */
class Recording {
  constructor(game, array) {
    Object.assign(this, game);
    this.values = array(game.values);
    this.rewards = array(game.rewards);
    this.allOutputs = array(game.outputs);
    this.allActions = array(game.actions);
    this.numOutputs = this.allOutputs.length / this.steps;
    this.numActions = this.allActions.length / this.steps;
    const seen = game.observations;
    this.isImage = seen.kind === "image";
    if (this.isImage) {
      this.shape = seen.first.shape;
      this.firstObservation = array(seen.first);
      this.newest = array(seen.newest);
      this.newChannels = seen.new;
    } else {
      this.vectors = array(seen.values);
      this.shape = [this.vectors.length / this.steps];
    }
    if (game.film) {
      this.pictures = array(game.film.pictures);
      [, this.filmHeight, this.filmWidth] = game.film.pictures.shape;
    }
    if (game.saliency) {
      this.storedSaliency = array(game.saliency);
      this.saliencySide = game.saliency.shape[1];
    }
  }

  outputsAt(step) {
    return this.allOutputs.subarray(step * this.numOutputs, (step + 1) * this.numOutputs);
  }

  actionAt(step) {
    return Array.from(this.allActions.subarray(step * this.numActions, (step + 1) * this.numActions));
  }

  /** A copy of what the network saw before a step. */
  observationAt(step) {
    if (!this.isImage) return this.vectors.slice(step * this.shape[0], (step + 1) * this.shape[0]);
    const [channels, height, width] = this.shape, size = height * width, fresh = this.newChannels;
    const result = new Uint8Array(channels * size), slots = channels / fresh;
    for (let slot = 0; slot < slots; slot++) {
      const from = step - (slots - 1 - slot), target = slot * fresh * size;
      if (from >= 0) result.set(this.newest.subarray(from * fresh * size, (from + 1) * fresh * size), target);
      else result.set(this.firstObservation.subarray((from + slots - 1) * fresh * size, (from + slots) * fresh * size), target);
    }
    return result;
  }
}

class Player {
  constructor(game, network) {
    Object.assign(this, { game, network, step: 0, isPlaying: false, speed: 1, edited: null, tint: "value", entry: 0 });
    this.policy = new PolicyView(byId("actions"), game);
    this.setUpViews();
    this.setUpControls();
    this.setUpTrace();
    this.seek(0);
    const holder = byId("actions");
    if (holder.scrollHeight > holder.clientHeight) holder.tabIndex = 0;
  }

  setUpViews() {
    const { game } = this;
    byId("screen-view").hidden = !game.film;
    byId("eye-view").hidden = !game.isImage;
    byId("entries-view").hidden = game.isImage;
    byId("poke").hidden = !this.network;
    byId("first-layer").hidden = !this.network || !this.network.first;
    byId("inside").hidden = byId("first-layer").hidden && (!this.network || game.isImage);
    if (game.film) {
      const screen = byId("screen");
      screen.width = game.filmWidth;
      screen.height = game.filmHeight;
      this.screenPen = screen.getContext("2d");
      this.screenImage = this.screenPen.createImageData(screen.width, screen.height);
      this.colours = Uint32Array.from(game.film.palette, ([red, green, blue]) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0);
    }
    if (game.isImage) this.setUpImage();
    else this.setUpVector();
  }

  setUpImage() {
    const { game } = this, [, height, width] = game.shape;
    this.editor = new ImageEditor(byId("eye"), game.shape, game.channelsPerPicture, () => this.pause(), () => this.change(this.editor.pixels));
    if (!this.network) this.editor.tool = "none";
    byId("eye").width = width;
    byId("eye").height = height;
    this.thumbnails = Array.from({ length: this.editor.numPictures }, (_, number) => {
      const ago = this.editor.numPictures - 1 - number;
      const canvas = element("canvas", { width, height, role: "img", "aria-label": ago ? `${ago} steps before` : "now" });
      byId("stack").append(element("span", {}, [canvas, element("small", { text: ago ? `t−${ago}` : "t" })]));
      return canvas;
    });
    byId("stack").hidden = this.thumbnails.length < 2;
    if (!this.network) return;
    byId("poke-lead").textContent = "This is the agent itself, not a film. Change the picture that the network sees, and it decides anew.";
    const buttons = TOOLS.map(([tool, label, help]) => element("button", {
      type: "button", text: label, "aria-pressed": String(tool === "move"), onclick: (event) => {
        this.editor.choose(tool);
        for (const button of buttons) button.setAttribute("aria-pressed", button === event.currentTarget);
        byId("tool-help").textContent = help;
        brightness.hidden = tool !== "paint";
        this.pause();
      },
    }));
    this.editor.choose("move");
    this.editor.takeKeys(byId("cursor"), (text) => { byId("spoken").textContent = text; });
    byId("eye").setAttribute("role", "application");
    byId("eye").setAttribute("aria-describedby", "tool-help keys-help");
    byId("keys-help").hidden = false;
    byId("tool-help").textContent = TOOLS[0][2];
    const slider = element("input", { type: "range", min: 0, max: 255, value: this.editor.brightness,
      oninput: () => { this.editor.brightness = Number(slider.value); } });
    const brightness = element("label", { text: "Brightness ", hidden: true }, [slider]);
    const options = [["value", "what the value depends on"], ["action", "what the action depends on"], ["none", "nothing"]];
    const tint = element("select", { onchange: () => { this.tint = tint.value; this.showNow(); } },
      options.map(([value, text]) => element("option", { value, text })));
    byId("tools").append(...buttons, brightness,
      element("button", { type: "button", text: "Put back", onclick: () => this.seek(this.step) }),
      element("label", {}, ["Tint ", tint]));
  }

  setUpVector() {
    const { game } = this, number = game.shape[0];
    const ranges = Array.from({ length: number }, (_, entry) => {
      let low = Infinity, high = -Infinity;
      for (let step = 0; step < game.steps; step++) {
        const value = game.vectors[step * number + entry];
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
      const margin = Math.max(0.5 * (high - low), 0.05 * Math.abs(high), 1e-3);
      return [low - margin, high + margin];
    });
    this.ranges = ranges;
    this.vectorEditor = new VectorEditor(byId("entries"), game.entryNames, ranges, (entry, value) => {
      const vector = this.edited || game.observationAt(this.step);
      vector[entry] = value;
      this.entry = entry;
      this.change(vector);
    }, (entry) => { this.entry = entry; this.showNow(); });
    if (!this.network) {
      for (const { slider } of this.vectorEditor.rows) slider.disabled = true;
      return;
    }
    byId("poke-lead").textContent = "This is the agent itself, not a film. Move a slider, and it decides anew. "
      + "The line under a slider shows how much the value depends on that entry here.";
    byId("tools").append(element("button", { type: "button", text: "Put back", onclick: () => this.seek(this.step) }));
    byId("sweep").hidden = false;
  }

  setUpControls() {
    byId("seek").max = this.game.steps - 1;
    byId("seek").addEventListener("input", () => { this.pause(); this.seek(Number(byId("seek").value)); });
    byId("play").addEventListener("click", () => this.isPlaying ? this.pause() : this.play());
    byId("back").addEventListener("click", () => { this.pause(); this.seek(this.step - 1); });
    byId("forth").addEventListener("click", () => { this.pause(); this.seek(this.step + 1); });
    byId("speed").addEventListener("change", () => { this.speed = Number(byId("speed").value); });
    document.addEventListener("keydown", (event) => {
      if (event.key !== " " || event.target !== document.body) return;
      event.preventDefault();
      byId("play").click();
    });
  }

  setUpTrace() {
    const rewarded = [];
    this.game.rewards.forEach((reward, step) => { if (reward !== 0) rewarded.push({ step, reward }); });
    // Worlds with a reward in most steps would have nothing but marks.
    this.marks = rewarded.length <= this.game.steps / 4 ? rewarded : [];
    byId("marks-help").hidden = !this.marks.length;
    const { game } = this, seekTo = (plot, event) => {
      const box = plot.over.getBoundingClientRect();
      this.pause();
      this.seek(Math.round(plot.posToVal(event.clientX - box.left, "x")));
    };
    const ready = (plot) => {
      this.playhead = element("div", { class: "playhead" });
      plot.over.append(this.playhead);
      plot.over.addEventListener("pointerdown", (event) => seekTo(plot, event));
      plot.over.addEventListener("pointermove", (event) => { if (event.buttons === 1) seekTo(plot, event); });
      this.placePlayhead(plot);
    };
    this.trace = chart(byId("trace"), {
      x: Array.from({ length: game.steps }, (_, step) => step), xLabel: "step", height: 170, legend: false,
      label: `The value over ${game.steps} steps of the game`,
      series: [{ label: "value", values: Array.from(game.values), colour: "c1" }],
      cursor: { drag: { x: false, y: false } },
      hooks: { ready: [ready], draw: [(plot) => drawRewards(plot, this.marks)], setSize: [(plot) => this.placePlayhead(plot)] },
    });
  }

  placePlayhead(plot) {
    if (this.playhead) this.playhead.style.left = `${plot.valToPos(this.step, "x")}px`;
  }

  play() {
    if (this.step >= this.game.steps - 1) this.seek(0);
    this.isPlaying = true;
    byId("play").textContent = "Pause";
    let shown = performance.now(), owed = 0;
    const tick = (now) => {
      if (!this.isPlaying) return;
      owed += (now - shown) / 1000 * this.game.rate * this.speed;
      shown = now;
      const steps = Math.min(Math.floor(owed), 30);
      if (steps) {
        owed -= Math.floor(owed);
        this.seek(this.step + steps);
      }
      if (this.step >= this.game.steps - 1) this.pause();
      else requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() {
    if (!this.isPlaying) return;
    this.isPlaying = false;
    byId("play").textContent = "Play";
    this.showNow();  // while it plays, less is said and drawn
  }

  seek(step) {
    this.step = Math.max(0, Math.min(this.game.steps - 1, step));
    this.edited = null;
    if (this.editor) this.editor.take(this.game.observationAt(this.step));
    byId("seek").value = this.step;
    const total = this.game.rewards.subarray(0, this.step).reduce((sum, reward) => sum + reward, 0);
    byId("step").textContent = `step ${this.step} of ${this.game.steps - 1}, return so far ${short(total)}`;
    byId("seek").setAttribute("aria-valuetext", byId("step").textContent);
    if (this.game.film) this.showScreen();
    if (this.trace.plot) this.placePlayhead(this.trace.plot);
    this.showNow();
  }

  change(observation) {
    this.edited = observation;
    this.pause();
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => this.showNow());
  }

  /** Show what the network sees now, and what it says of that. */
  showNow() {
    const { game, network, step, edited } = this;
    const observation = edited || (this.editor ? this.editor.pixels : game.observationAt(step));
    const answer = network ? network.run(observation) : null;
    const outputs = edited ? answer.outputs : game.outputsAt(step), value = edited ? answer.value : game.values[step];
    const spoken = this.policy.show(outputs, edited ? game.outputsAt(step) : null, edited ? null : game.actionAt(step));
    byId("value").textContent = edited ? `${short(game.values[step])} → ${short(value)}` : short(value);
    const gradient = network ? this.gradientOf(answer) : null;
    if (game.isImage) this.showImage(observation, gradient);
    else this.showVector(observation, gradient);
    for (const id of ["eye-state", "entries-state"]) byId(id).hidden = !edited;
    byId("before-help").hidden = !edited || !spoken;
    if (answer && answer.first) this.showFirst(answer.first);
    if (!this.isPlaying) byId("spoken").textContent = `Value ${short(value)}. ${spoken}.`;
  }

  /** Return the gradient that the tint shows. */
  gradientOf(answer) {
    if (this.tint === "none") return null;
    if (this.tint === "value") return this.network.saliencyOfValue(answer);
    return this.network.saliencyOfPolicy(answer, slopeOfDecision(this.game, answer.outputs));
  }

  showScreen() {
    const { game } = this, size = game.filmWidth * game.filmHeight;
    const target = new Uint32Array(this.screenImage.data.buffer), start = this.step * size;
    for (let at = 0; at < size; at++) target[at] = this.colours[game.pictures[start + at]];
    this.screenPen.putImageData(this.screenImage, 0, 0);
  }

  showImage(observation, gradient) {
    const [channels, height, width] = this.game.shape, { group } = this.editor, size = height * width;
    const heat = gradient ? heatOf(gradient, channels, size) : this.storedHeat(height, width);
    this.thumbnails.forEach((canvas, number) => paintPicture(canvas, observation, number * group, group, size, null));
    paintPicture(byId("eye"), observation, channels - group, group, size, heat);
  }

  storedHeat(height, width) {
    const { storedSaliency, saliencySide: side } = this.game;
    if (!storedSaliency) return null;
    const start = this.step * side * side;
    return Float32Array.from({ length: height * width }, (_, at) => {
      const row = Math.floor(Math.floor(at / width) * side / height), column = Math.floor((at % width) * side / width);
      return storedSaliency[start + row * side + column] / 255;
    });
  }

  showVector(observation, gradient) {
    this.vectorEditor.show(observation, gradient);
    this.vectorEditor.mark(this.entry);
    if (this.network && (!this.isPlaying || this.step % STEPS_BETWEEN_SWEEPS === 0)) this.showSweep(observation);
  }

  /** Show how the decision and the value depend on one entry, all others as they are. */
  showSweep(observation) {
    const { game, entry } = this, [low, high] = this.ranges[entry], points = 61;
    const xs = Array.from({ length: points }, (_, place) => low + (high - low) * place / (points - 1));
    const answers = xs.map((x) => {
      const vector = observation.slice();
      vector[entry] = x;
      return this.network.run(vector);
    });
    const policies = answers.map((answer) => readPolicy(game, answer.outputs));
    const columns = policies[0].flatMap((group, number) => group.density
      ? [{ label: group.title, values: policies.map((policy) => policy[number].mean) }]
      : group.labels.map((label, place) => ({ label, values: policies.map((policy) => policy[number].probabilities[place]) })));
    const shades = ["c1", "c2", "c3", "c4", "c5"];
    const series = columns.slice(0, 5).map((column, place) => ({ ...column, colour: shades[place] }));
    series.push({ label: "value", values: answers.map((answer) => answer.value), colour: "c6", scale: "second" });
    const name = game.entryNames[entry] || `entry ${entry}`;
    byId("sweep-title").textContent = `How the decision depends on: ${name}`;
    const isBars = !policies[0][0] || !policies[0][0].density;
    const words = { xLabel: name, label: `Decision and value over ${name}` };
    this.sweepNow = observation[entry];
    if (!this.sweep) {
      this.sweep = chart(byId("sweep-chart"), {
        x: xs, ...words, series, height: 240, secondLabel: "value",
        range: isBars ? [0, 1] : undefined,
        hooks: { draw: [(plot) => {
          const x = plot.valToPos(this.sweepNow, "x", true);
          plot.ctx.fillStyle = colour("soft");
          plot.ctx.fillRect(x - 1, plot.bbox.top, 2, plot.bbox.height);
        }] },
      });
    } else replaceData(this.sweep, xs, series.map((one) => one.values), words);
  }

  showFirst(activations) {
    const canvas = byId("activations"), { after } = this.network.first;
    const [maps, rows, columns] = after || [activations.length, 1, 1];
    let highest = 1e-6;
    for (const value of activations) highest = Math.max(highest, Math.abs(value));
    const across = after ? Math.ceil(maps / 2) : Math.min(maps, 32), down = Math.ceil(maps / across), gap = after ? 2 : 0;
    canvas.width = across * (columns + gap) - gap;
    canvas.height = down * (rows + gap) - gap;
    canvas.classList.toggle("units", !after);
    const pen = canvas.getContext("2d"), image = pen.createImageData(canvas.width, canvas.height);
    const low = rgb("activation-zero"), high = rgb("activation-high"), minus = rgb("activation-low");
    for (let map = 0; map < maps; map++) {
      const left = (map % across) * (columns + gap), top = Math.floor(map / across) * (rows + gap);
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++) {
          const share = activations[(map * rows + row) * columns + column] / highest, end = share < 0 ? minus : high;
          const at = 4 * ((top + row) * canvas.width + left + column), weight = Math.sqrt(Math.abs(share));
          for (let part = 0; part < 3; part++) image.data[at + part] = low[part] + (end[part] - low[part]) * weight;
          image.data[at + 3] = 255;
        }
      }
    }
    pen.putImageData(image, 0, 0);
    byId("activations-help").textContent = after
      ? `${maps} filters, each ${rows}×${columns}: bright where a filter answers.`
      : `${maps} units: one colour for positive, the other for negative, pale for zero.`;
  }
}

/** Return what each pixel adds to the value, over all channels, from 0 to 1. */
function heatOf(gradient, channels, size) {
  const heat = new Float32Array(size);
  for (let channel = 0; channel < channels; channel++) {
    for (let at = 0; at < size; at++) heat[at] += Math.abs(gradient[channel * size + at]);
  }
  const sorted = heat.slice().sort(), highest = sorted[Math.floor(0.995 * (size - 1))] || 1;
  return heat.map((value) => Math.min(1, value / highest));
}

function rgb(name) {
  const text = colour(name);
  return [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
}
