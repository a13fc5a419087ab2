"use strict";

/* Changing what the network sees: objects that can be moved and erased, and a brush; sliders for vectors. */

const CONTRAST = 12;
const NEAR = 3;
const FAR = 14;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FAR_BY_SHIFT = 10;

const TOOLS = [
  ["move", "Move", "Drag an object, such as the ball or a paddle, to another place. It moves in all pictures that the network sees."],
  ["erase", "Erase", "Click an object to take it out, or drag to wipe over it."],
  ["paint", "Paint", "Drag to draw, as bright as the slider says."],
  ["none", "Look", "The tint is brightest where a small change of a pixel would change the value, or the action, most."],
];

/**
 * The images (C, H, W) of an observation that the user changes; `group` channels make a picture, the last is the newest.
 * `pressed` is called before a tool is applied, `changed` after the pixels have changed.
 */
class ImageEditor {
  constructor(canvas, shape, group, pressed, changed) {
    Object.assign(this, { canvas, group, pressed, changed, tool: "move", brightness: 236, radius: 1, pixels: null, grip: null });
    [this.channels, this.height, this.width] = shape;
    canvas.addEventListener("pointerdown", (event) => {
      if (this.tool === "none" || !this.pixels) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      this.press(...this.place(event));
    });
    canvas.addEventListener("pointermove", (event) => this.drag(...this.place(event)));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { this.grip = null; });
  }

  /** Show another observation. */
  take(pixels) {
    this.pixels = pixels;
    this.grip = null;
  }

  choose(tool) {
    this.tool = this.canvas.dataset.tool = tool;
    this.grip = null;
  }

  /** Let keys do what a pointer can: arrows move `cursor`, an element over the canvas, and Enter applies the tool there. */
  takeKeys(cursor, tell) {
    const { canvas, width, height, radius } = this;
    let x = width >> 1, y = height >> 1;
    const show = (isShown) => {
      cursor.hidden = !isShown;
      cursor.style.left = `${100 * (x - radius) / width}%`;
      cursor.style.top = `${100 * (y - radius) / height}%`;
      cursor.classList.toggle("holding", this.grip !== null);
    };
    cursor.style.width = `${100 * (2 * radius + 1) / width}%`;
    cursor.style.height = `${100 * (2 * radius + 1) / height}%`;
    canvas.tabIndex = 0;
    canvas.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || (event.key === "Enter" && event.repeat)) return;
      const way = ARROWS[event.key], far = event.shiftKey ? FAR_BY_SHIFT : 1;
      if (way) {
        x = Math.max(0, Math.min(width - 1, x + far * way[0]));
        y = Math.max(0, Math.min(height - 1, y + far * way[1]));
        this.drag(x, y);
      } else if (event.key !== "Enter" || this.tool === "none") return;
      else if (this.grip) this.grip = null;
      else {
        this.press(x, y);
        if (this.tool !== "move") this.grip = null;
      }
      event.preventDefault();
      show(true);
      const what = this.grip ? "an object, taken up" : this.objectsAt(x, y) ? "an object" : "nothing to take";
      tell(`Column ${x}, row ${y}: ${what}.`);
    });
    canvas.addEventListener("focus", () => show(canvas.matches(":focus-visible")));
    canvas.addEventListener("pointerdown", (event) => {
      [x, y] = this.place(event);
      show(false);
    });
    canvas.addEventListener("blur", () => {
      this.grip = null;
      show(false);
    });
  }

  get size() { return this.height * this.width; }

  get numPictures() { return this.channels / this.group; }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [Math.floor((event.clientX - box.left) / box.width * this.width),
      Math.floor((event.clientY - box.top) / box.height * this.height)];
  }

  press(x, y) {
    this.pressed();
    if (this.tool === "move") this.grip = this.grasp(x, y);
    else {
      this.grip = { x, y };
      if (this.tool === "erase") this.eraseObject(x, y);
      this.stroke(x, y);
    }
  }

  drag(x, y) {
    if (!this.grip) return;
    if (this.tool === "move") this.moveTo(x, y);
    else {
      const steps = Math.max(1, Math.abs(x - this.grip.x), Math.abs(y - this.grip.y));
      for (let step = 1; step <= steps; step++) {
        this.stroke(Math.round(this.grip.x + (x - this.grip.x) * step / steps),
          Math.round(this.grip.y + (y - this.grip.y) * step / steps), step < steps);
      }
      this.grip = { x, y };
    }
  }

  /** Paint or wipe a spot in all pictures. */
  stroke(x, y, isSilent = false) {
    for (let channel = 0; channel < this.channels; channel++) {
      const value = this.tool === "paint" ? this.brightness : this.background(channel);
      for (let row = y - this.radius; row <= y + this.radius; row++) {
        for (let column = x - this.radius; column <= x + this.radius; column++) {
          if (row >= 0 && row < this.height && column >= 0 && column < this.width) {
            this.pixels[channel * this.size + row * this.width + column] = value;
          }
        }
      }
    }
    if (!isSilent) this.changed();
  }

  /** The commonest value of a channel. */
  background(channel) {
    const counts = new Uint32Array(256);
    for (let at = channel * this.size; at < (channel + 1) * this.size; at++) counts[this.pixels[at]]++;
    return counts.indexOf(Math.max(...counts));
  }

  /** Return the pixels of the object of a channel that is nearest to a place, at most so far away; empty if there is none. */
  objectAt(channel, x, y, far) {
    const start = channel * this.size, ground = this.background(channel);
    const stands = (at) => Math.abs(this.pixels[start + at] - ground) > CONTRAST;
    let nearest = -1, distance = far + 1;
    for (let row = Math.max(0, y - far); row <= Math.min(this.height - 1, y + far); row++) {
      for (let column = Math.max(0, x - far); column <= Math.min(this.width - 1, x + far); column++) {
        const away = Math.max(Math.abs(row - y), Math.abs(column - x));
        if (away < distance && stands(row * this.width + column)) {
          nearest = row * this.width + column;
          distance = away;
        }
      }
    }
    if (nearest < 0) return [];
    const found = new Set([nearest]), waiting = [nearest];
    while (waiting.length) {
      const at = waiting.pop(), column = at % this.width;
      for (const [next, ok] of [[at - 1, column > 0], [at + 1, column < this.width - 1], [at - this.width, at >= this.width],
        [at + this.width, at + this.width < this.size]]) {
        if (ok && !found.has(next) && stands(next)) { found.add(next); waiting.push(next); }
      }
    }
    return [...found];
  }

  /** Return the object at a place in each channel; in older pictures it may stand somewhat aside. Null if it is none, or large. */
  objectsAt(x, y) {
    const newest = this.objectAt(this.channels - 1, x, y, NEAR);
    if (!newest.length || newest.length > this.size / 8) return null;
    const middle = (pixels) => [0, 1].map((axis) => Math.round(pixels.reduce(
      (sum, at) => sum + (axis ? Math.floor(at / this.width) : at % this.width), 0) / pixels.length));
    const objects = new Array(this.channels);
    let [column, row] = middle(newest);
    for (let channel = this.channels - 1; channel >= 0; channel--) {
      const found = this.objectAt(channel, column, row, FAR);
      const isLike = found.length && found.length < 4 * newest.length + 8;
      objects[channel] = isLike ? found : [];
      if (isLike) [column, row] = middle(found);
    }
    return objects;
  }

  eraseObject(x, y) {
    const objects = this.objectsAt(x, y);
    if (!objects) return;
    objects.forEach((pixels, channel) => {
      const ground = this.background(channel);
      for (const at of pixels) this.pixels[channel * this.size + at] = ground;
    });
    this.changed();
  }

  /** Take an object up: its pixels, and the picture without it. */
  grasp(x, y) {
    const objects = this.objectsAt(x, y);
    if (!objects) return null;
    const without = this.pixels.slice(), values = [];
    objects.forEach((pixels, channel) => {
      const ground = this.background(channel);
      values.push(pixels.map((at) => this.pixels[channel * this.size + at]));
      for (const at of pixels) without[channel * this.size + at] = ground;
    });
    return { x, y, objects, without, values };
  }

  moveTo(x, y) {
    const { objects, without, values } = this.grip, right = x - this.grip.x, down = y - this.grip.y;
    this.pixels.set(without);
    objects.forEach((pixels, channel) => pixels.forEach((at, number) => {
      const column = at % this.width + right, row = Math.floor(at / this.width) + down;
      if (column >= 0 && column < this.width && row >= 0 && row < this.height) {
        this.pixels[channel * this.size + row * this.width + column] = values[channel][number];
      }
    }));
    this.changed();
  }
}

/** A slider for each entry of a vector, with a bar of how much the value depends on it. */
class VectorEditor {
  constructor(holder, names, ranges, changed, chosen) {
    this.rows = ranges.map(([low, high], place) => {
      const name = names[place] || `entry ${place}`;
      const slider = element("input", { type: "range", min: low, max: high, step: "any", "aria-label": name });
      const number = element("span", { class: "numeric" }), weight = element("span", { class: "weight", "aria-hidden": "true" });
      slider.addEventListener("input", () => changed(place, Number(slider.value)));
      const pick = element("button", { type: "button", class: "pick", text: name, "aria-pressed": "false",
        title: "Show how the decision depends on it", onclick: () => chosen(place) });
      holder.append(element("div", { class: "entry" }, [pick, slider, number, element("span", { class: "gauge" }, [weight])]));
      return { slider, number, weight, pick, low, high };
    });
  }

  show(values, gradient) {
    const pulls = gradient ? Array.from(gradient, (slope, place) =>
      Math.abs(slope) * (this.rows[place].high - this.rows[place].low)) : null;
    const largest = pulls ? Math.max(...pulls, 1e-12) : 1;
    this.rows.forEach(({ slider, number, weight }, place) => {
      if (document.activeElement !== slider || Number(slider.value) !== values[place]) slider.value = values[place];
      number.textContent = values[place].toFixed(3);
      weight.style.width = pulls ? `${100 * pulls[place] / largest}%` : "0";
    });
  }

  mark(place) {
    this.rows.forEach(({ pick }, other) => pick.setAttribute("aria-pressed", other === place));
  }
}
