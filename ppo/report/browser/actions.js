"use strict";

/* What the outputs of the policy head mean, and how they are shown. */

/** Return the policy as groups: bars of probabilities, or a density; for `distribution` see describe_distribution. */
function readPolicy(game, outputs) {
  const { distribution, actionNames } = game, { kind, sizes } = distribution;
  const groups = [];
  if (kind === "categorical" || kind === "multi_categorical") {
    let start = 0;
    sizes.forEach((size, number) => {
      const probabilities = softmax(outputs.slice(start, start + size));
      const labels = probabilities.map((_, place) => kind === "categorical" && actionNames[place] || `action ${place}`);
      groups.push({ title: sizes.length > 1 ? actionNames[number] || `dimension ${number}` : "", labels, probabilities });
      start += size;
    });
  } else if (kind === "bernoulli") {
    const labels = sizes.map((_, place) => actionNames[place] || `bit ${place}`);
    groups.push({ title: "", labels, probabilities: Array.from(outputs, (value) => 1 / (1 + Math.exp(-value))), bits: true });
  } else if (kind === "gaussian" || kind === "beta") {
    const number = distribution.low.length;
    for (let place = 0; place < number; place++) {
      const one = kind === "beta"
        ? betaDensity(outputs[place], outputs[number + place])
        : gaussianDensity(outputs[place], outputs[number + place]);
      const low = distribution.low[place], high = distribution.high[place];
      groups.push({ title: actionNames[place] || `dimension ${place}`, low, high, ...one,
        mean: low + (high - low) * Math.max(0, Math.min(1, one.share)) });
    }
  }
  return groups;
}

/**
 * Return the gradient, with respect to the outputs, of what the policy does: the logarithm of the best action's
 * probability, or the mean of a continuous action; of all dimensions added up.
 */
function slopeOfDecision(game, outputs) {
  const { distribution } = game, { kind } = distribution, slope = new Float32Array(outputs.length);
  if (kind === "gaussian" || kind === "beta") {
    const number = distribution.low.length;
    for (let place = 0; place < number; place++) {
      if (kind === "gaussian") slope[place] = 1;
      else {
        const alpha = 1 + softplus(outputs[place]), beta = 1 + softplus(outputs[number + place]);
        slope[place] = beta / (alpha + beta) ** 2 / (1 + Math.exp(-outputs[place]));
        slope[number + place] = -alpha / (alpha + beta) ** 2 / (1 + Math.exp(-outputs[number + place]));
      }
    }
    return slope;
  }
  let place = 0;
  for (const group of readPolicy(game, outputs)) {
    const best = bestOf(group);
    group.probabilities.forEach((value, number) => {
      slope[place++] = group.bits ? Math.sign(value - 0.5) * Math.min(value, 1 - value) : best.includes(number) - value;
    });
  }
  return slope;
}

function softmax(logits) {
  const highest = Math.max(...logits), powers = Array.from(logits, (value) => Math.exp(value - highest));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

/** The density over the range from 0 (lowest action) to 1 (highest); `share` is where its mean is. */
function gaussianDensity(mean, logDeviation) {
  const share = (mean + 1) / 2, deviation = Math.exp(Math.max(-10, Math.min(10, logDeviation))) / 2;
  const density = (x) => Math.exp(-0.5 * ((x - share) / deviation) ** 2) / (deviation * Math.sqrt(2 * Math.PI));
  return { share, deviation, density };
}

function betaDensity(left, right) {
  const alpha = 1 + softplus(left), beta = 1 + softplus(right);
  const constant = logGamma(alpha + beta) - logGamma(alpha) - logGamma(beta);
  const density = (x) => x <= 0 || x >= 1 ? 0
    : Math.exp(constant + (alpha - 1) * Math.log(x) + (beta - 1) * Math.log(1 - x));
  return { share: alpha / (alpha + beta), alpha, beta, density };
}

const softplus = (value) => value > 30 ? value : Math.log1p(Math.exp(value));

/** Stirling's series, after the argument is lifted above 8: eight digits. */
function logGamma(value) {
  let shift = 0;
  for (; value < 8; value++) shift -= Math.log(value);
  return shift + (value - 0.5) * Math.log(value) - value + 0.5 * Math.log(2 * Math.PI) + 1 / (12 * value)
    - 1 / (360 * value ** 3);
}

/** Return the places of the best action of a group with probabilities: of the likeliest action, or of all bits that are set. */
function bestOf({ probabilities, bits }) {
  const places = [...probabilities.keys()], highest = Math.max(...probabilities);
  return bits ? places.filter((place) => probabilities[place] > 0.5) : [probabilities.indexOf(highest)];
}

/** Rows of bars or small pictures of densities, made once and updated often. */
class PolicyView {
  constructor(holder, game) {
    this.game = game;
    this.rows = [];
    for (const group of readPolicy(game, new Float32Array(game.numOutputs))) {
      if (group.title) holder.append(element("h4", { text: group.title }));
      if (group.density) {
        const canvas = element("canvas", { class: "density", role: "img" });
        const note = element("p", { class: "help numeric" });
        holder.append(canvas, note);
        this.rows.push({ canvas, note });
        continue;
      }
      const table = element("table", { class: "bars" });
      const bars = group.labels.map((label) => {
        const bar = element("span", { class: "bar" }), before = element("span", { class: "before" });
        const number = element("td", { class: "numeric" }), chosen = element("td", { class: "chosen" });
        const row = element("tr", {}, [element("th", { scope: "row", text: label.replaceAll("_", " ") }),
          element("td", { class: "wide" }, [element("span", { class: "track" }, [bar, before])]), number, chosen]);
        table.append(row);
        return { row, bar, before, number, chosen };
      });
      holder.append(table);
      this.rows.push({ bars });
    }
    if (!this.rows.length) holder.append(element("p", { text: "Actions of this kind are not drawn here." }));
  }

  /** Show outputs, and beside them those before a change and the action that the game took; both may be missing. */
  show(outputs, before, action) {
    const taken = action ? placesOf(this.game.distribution, action) : null;
    const groups = readPolicy(this.game, outputs), old = before ? readPolicy(this.game, before) : null;
    const spoken = [];
    groups.forEach((group, number) => {
      const view = this.rows[number];
      if (group.density) this.showDensity(view, group, old && old[number], taken ? taken[number] : null, spoken);
      else this.showBars(view, group, old && old[number], taken, number, spoken);
    });
    return spoken.join(", ");
  }

  showBars({ bars }, group, old, taken, number, spoken) {
    const best = bestOf(group);
    bars.forEach(({ row, bar, before, number: figure, chosen }, place) => {
      const probability = group.probabilities[place];
      bar.style.width = `${100 * probability}%`;
      before.hidden = !old;
      if (old) before.style.left = `${100 * old.probabilities[place]}%`;
      figure.textContent = `${(100 * probability).toFixed(probability > 0.0995 ? 0 : 1)} %`;
      row.classList.toggle("best", best.includes(place));
      const isTaken = taken && (group.bits ? taken[place] > 0 : taken[number] === place);
      chosen.textContent = isTaken ? "● taken" : "";
    });
    spoken.push(...best.map((place) => `${group.labels[place]} ${Math.round(100 * group.probabilities[place])} %`));
    if (!best.length) spoken.push("no bit");
  }

  showDensity({ canvas, note }, group, old, taken, spoken) {
    const width = canvas.clientWidth || 260, height = 72, ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const xs = Array.from({ length: width }, (_, x) => (x + 0.5) / width);
    const curve = xs.map(group.density), ghost = old ? xs.map(old.density) : [];
    const highest = Math.max(...curve, ...ghost, 1e-9);
    const line = (values, fill) => {
      pen.beginPath();
      if (fill) pen.moveTo(0, height);
      values.forEach((value, x) => pen.lineTo(x, height - 2 - (height - 8) * value / highest));
      if (fill) { pen.lineTo(width, height); pen.fill(); } else pen.stroke();
    };
    pen.fillStyle = colour("c1-soft");
    line(curve, true);
    pen.strokeStyle = colour("c1");
    pen.lineWidth = 1.75;
    line(curve, false);
    if (old) {
      pen.strokeStyle = colour("soft");
      pen.setLineDash([3, 3]);
      line(ghost, false);
      pen.setLineDash([]);
    }
    if (taken !== null) {
      const x = width * Math.max(0, Math.min(1, (taken - group.low) / (group.high - group.low)));
      pen.fillStyle = colour("c4");
      pen.fillRect(Math.max(0, Math.min(width - 2, x - 1)), 0, 2, height);
    }
    note.textContent = `mean ${short(group.mean)} in ${short(group.low)} to ${short(group.high)}`
      + (taken !== null ? `; taken ${short(taken)}` : "");
    canvas.setAttribute("aria-label", `${group.title}: ${note.textContent}`);
    spoken.push(`${group.title} ${short(group.mean)}`);
  }
}

/** Return an action as places among the categories, which a space may count from another number than 0. */
function placesOf({ starts }, action) {
  return starts ? Array.from(action, (value, place) => value - starts[place]) : action;
}

const BINS_OF_ACTIONS = 24;

/** Show how often each action was taken over the game. */
function fillActionCounts(game) {
  const holder = byId("taken-groups"), groups = readPolicy(game, new Float32Array(game.numOutputs));
  const dimension = (number) => Array.from({ length: game.steps }, (_, step) => placesOf(game.distribution, game.actionAt(step))[number]);
  groups.forEach((group, number) => {
    if (group.title) holder.append(element("h4", { text: group.title }));
    if (group.density) {
      const counts = new Array(BINS_OF_ACTIONS).fill(0), width = (group.high - group.low) / BINS_OF_ACTIONS;
      for (const value of dimension(number)) {
        counts[Math.max(0, Math.min(BINS_OF_ACTIONS - 1, Math.floor((value - group.low) / width)))]++;
      }
      const chartHolder = element("div", { class: "chart" });
      holder.append(chartHolder);
      const middles = counts.map((_, place) => group.low + (place + 0.5) * width);
      const state = chart(chartHolder, { x: middles, xLabel: group.title, height: 120, legend: false,
        label: `How often each value of ${group.title} was sent`,
        series: [{ label: "steps", values: counts, colour: "c1", bars: true }] });
      holder.append(tableOf(state));
      return;
    }
    const counts = group.labels.map((_, place) => group.bits
      ? dimension(place).filter((value) => value > 0).length
      : dimension(number).filter((value) => value === place).length);
    holder.append(element("table", { class: "bars" }, group.labels.map((label, place) => {
      const bar = element("span", { class: "bar" });
      bar.style.width = `${100 * counts[place] / game.steps}%`;
      return element("tr", {}, [element("th", { scope: "row", text: label.replaceAll("_", " ") }),
        element("td", { class: "wide" }, [element("span", { class: "track" }, [bar])]),
        element("td", { class: "numeric", text: `${(100 * counts[place] / game.steps).toFixed(1)} %` })]);
    })));
  });
  byId("taken").hidden = !groups.length;
}
