"use strict";

/* The data of the page: base64 of a deflated block, which is the length of a JSON text, the text, and arrays. */

const ARRAY_TYPES = { i1: Int8Array, u1: Uint8Array, f4: Float32Array };

/** Return the JSON of a block in base64, and a function that finds the array for a reference in it. */
async function unpack(base64) {
  const text = atob(base64);
  const packed = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) packed[place] = text.charCodeAt(place);
  const inflated = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const block = await new Response(inflated).arrayBuffer();
  const length = new DataView(block).getUint32(0, true);
  const start = 4 + length + ((8 - ((4 + length) % 8)) % 8);
  const content = JSON.parse(new TextDecoder().decode(new Uint8Array(block, 4, length)));
  const array = (reference) => {
    const size = reference.shape.reduce((product, side) => product * side, 1);
    const found = new ARRAY_TYPES[reference.type](block, start + reference.at, size);
    if (reference.film && !reference.isWhole) restoreFilm(found, size / reference.shape[0]);
    reference.isWhole = true;
    return found;
  };
  return { content, array };
}

/** Undo the differences between pictures that follow each other. */
function restoreFilm(pixels, size) {
  for (let place = size; place < pixels.length; place++) pixels[place] ^= pixels[place - size];
}

/** Return an element; whatever text comes from a run becomes text and nothing else. */
function element(tag, options = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);

/** Return a number as people write it: 1.2M, 12,345, 3.14, 0.0021. */
function short(number) {
  if (number === null || number === undefined || !Number.isFinite(number)) return "–";
  const size = Math.abs(number);
  if (size >= 1e9) return `${trim((number / 1e9).toFixed(1))}G`;
  if (size >= 1e6) return `${trim((number / 1e6).toFixed(1))}M`;
  if (size >= 1e4) return `${trim((number / 1e3).toFixed(1))}k`;
  if (size >= 100) return trim(number.toFixed(1));
  if (size >= 1) return trim(number.toFixed(2));
  if (size === 0) return "0";
  return size < 1e-3 ? number.toExponential(1) : trim(number.toPrecision(2));
}

const trim = (text) => text.includes(".") ? text.replace(/\.?0+$/, "") : text;
