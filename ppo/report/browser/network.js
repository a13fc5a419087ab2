"use strict";

/* The agent's network in plain JavaScript. Arrays are flat, in the order (channels, height, width). */

class Linear {
  constructor(layer, weight, bias) {
    this.weight = weight;
    this.bias = bias;
  }

  forward(input) {
    const { weight, bias } = this, size = input.length, output = new Float32Array(bias.length);
    for (let row = 0, place = 0; row < output.length; row++) {
      let sum = bias[row];
      for (let column = 0; column < size; column++) sum += weight[place++] * input[column];
      output[row] = sum;
    }
    return output;
  }

  backward(gradient, input) {
    const { weight } = this, size = input.length, result = new Float32Array(size);
    for (let row = 0; row < gradient.length; row++) {
      const factor = gradient[row];
      if (factor === 0) continue;
      for (let column = 0, place = row * size; column < size; column++) result[column] += factor * weight[place++];
    }
    return result;
  }
}

class Convolution {
  constructor(layer, weight, bias, constant) {
    Object.assign(this, { weight, bias, constant, before: layer.before, after: layer.after, stride: layer.stride });
    this.kernel = Math.sqrt(weight.length / (layer.before[0] * layer.after[0]));
  }

  forward(input) {
    const { weight, bias, stride, kernel } = this, [channels, height, width] = this.before;
    const [outputs, rows, columns] = this.after, output = new Float32Array(outputs * rows * columns);
    const size = channels * kernel * kernel, patch = new Float32Array(size), numPlaces = rows * columns;
    for (let row = 0, place = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, place++) {
        for (let channel = 0, at = 0; channel < channels; channel++) {
          let line = (channel * height + row * stride) * width + column * stride;
          for (let y = 0; y < kernel; y++, line += width) {
            for (let x = 0; x < kernel; x++) patch[at++] = input[line + x];
          }
        }
        for (let number = 0, at = 0; number < outputs; number++) {
          let sum = bias[number];
          for (let part = 0; part < size; part++) sum += weight[at++] * patch[part];
          output[number * numPlaces + place] = sum;
        }
      }
    }
    if (this.constant) for (let at = 0; at < output.length; at++) output[at] += this.constant[at];
    return output;
  }

  backward(gradient) {
    const { weight, stride, kernel } = this, [channels, height, width] = this.before;
    const [outputs, rows, columns] = this.after, result = new Float32Array(channels * height * width);
    const size = channels * kernel * kernel;
    let place = 0;
    for (let number = 0; number < outputs; number++) {
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++) {
          const factor = gradient[place++];
          if (factor === 0) continue;
          let at = number * size;
          for (let channel = 0; channel < channels; channel++) {
            let line = (channel * height + row * stride) * width + column * stride;
            for (let y = 0; y < kernel; y++, line += width) {
              for (let x = 0; x < kernel; x++) result[line + x] += factor * weight[at++];
            }
          }
        }
      }
    }
    return result;
  }
}

/** A function of each number; its slope is computed from the number and the result. */
class Activation {
  constructor(apply, slope) {
    this.apply = apply;
    this.slope = slope;
  }

  forward(input) {
    return Float32Array.from(input, this.apply);
  }

  backward(gradient, input, output) {
    return Float32Array.from(gradient, (value, place) => value * this.slope(input[place], output[place]));
  }
}

/** Numbers behind those of the layer before, the same for all observations. */
class Append {
  constructor(values) {
    this.values = values;
  }

  forward(input) {
    return Float32Array.of(...input, ...this.values);
  }

  backward(gradient, input) {
    return gradient.slice(0, input.length);
  }
}

/** Centres, scales and bounds observations. */
class Scaling {
  constructor(mean, deviation, bound) {
    Object.assign(this, { mean, deviation, bound: bound === null ? Infinity : bound });
  }

  forward(input) {
    const { mean, deviation, bound } = this, last = mean.length - 1;
    return Float32Array.from(input, (value, place) => {
      const scaled = (value - mean[Math.min(place, last)]) / deviation[Math.min(place, last)];
      return Math.max(-bound, Math.min(bound, scaled));
    });
  }

  backward(gradient, input, output) {
    const { deviation, bound } = this, last = deviation.length - 1;
    return Float32Array.from(gradient, (value, place) =>
      Math.abs(output[place]) >= bound ? 0 : value / deviation[Math.min(place, last)]);
  }
}

class Network {
  constructor(description, array) {
    this.shape = description.shape;
    this.units = description.units;
    const { scaling } = description;
    this.scaling = scaling ? [new Scaling(array(scaling.mean), array(scaling.deviation), scaling.bound)] : [];
    const build = (layers) => layers.map((layer) => makeLayer(layer, array));
    this.actor = build(description.actor);
    this.critic = description.critic ? build(description.critic) : null;
    this.policy = build(description.policy);
    this.value = build(description.value);
    /** Where the first layer's activations are found, and their shape if they are maps; null if the encoder has no layer. */
    this.first = null;
    const place = description.actor.findIndex(({ kind }) => kind === "linear" || kind === "convolution");
    if (place >= 0) {
      const next = description.actor[place + 1], isActivated = Boolean(next) && /relu|tanh/.test(next.kind);
      this.first = { place: this.scaling.length + place + isActivated, after: description.actor[place].after || null };
    }
  }

  /** Return the outputs of the policy head, the value in units of returns, and the first layer's activations (null if there is none). */
  run(observation) {
    const acting = forward([...this.scaling, ...this.actor], observation);
    const judging = this.critic ? forward([...this.scaling, ...this.critic], observation) : acting;
    const policy = forward(this.policy, last(acting)), value = forward(this.value, last(judging));
    return {
      outputs: last(policy),
      value: last(value)[0] * this.units.deviation + this.units.mean,
      first: this.first ? acting[this.first.place + 1] : null,
      states: { acting, judging, policy, value },
    };
  }

  /** Return the gradient of the value with respect to each number of an observation, which `answer` was for. */
  saliencyOfValue({ states }) {
    const gradient = backward(this.value, states.value, Float32Array.of(1));
    return backward([...this.scaling, ...(this.critic || this.actor)], states.judging, gradient);
  }

  /** The same of a function of the policy's outputs, given by its gradient. */
  saliencyOfPolicy({ states }, gradient) {
    return backward([...this.scaling, ...this.actor], states.acting, backward(this.policy, states.policy, gradient));
  }
}

function makeLayer(layer, array) {
  if (layer.kind === "linear") return new Linear(layer, weightOf(layer.weight, array), array(layer.bias));
  if (layer.kind === "convolution") {
    const constant = layer.constant ? array(layer.constant) : null;
    return new Convolution(layer, weightOf(layer.weight, array), array(layer.bias), constant);
  }
  if (layer.kind === "append") return new Append(array(layer.values));
  if (layer.kind === "tanh") return new Activation(Math.tanh, (input, output) => 1 - output * output);
  const slope = layer.kind === "leaky_relu" ? layer.slope : 0;
  return new Activation((value) => value > 0 ? value : slope * value, (input) => input > 0 ? 1 : slope);
}

/** Return a weight as numbers; whole ones have a scale for each output. */
function weightOf(weight, array) {
  const numbers = array(weight.numbers);
  if (!weight.scales) return numbers;
  const scales = array(weight.scales), size = numbers.length / scales.length;
  return Float32Array.from(numbers, (value, place) => value * scales[Math.floor(place / size)]);
}

/** Return the input and what each layer makes of it. */
function forward(layers, input) {
  const states = [input];
  for (const layer of layers) states.push(layer.forward(states[states.length - 1]));
  return states;
}

/** Return the gradient at the input of layers, of the states from `forward`, given that at their output. */
function backward(layers, states, gradient) {
  for (let place = layers.length - 1; place >= 0; place--) {
    gradient = layers[place].backward(gradient, states[place], states[place + 1]);
  }
  return gradient;
}

const last = (list) => list[list.length - 1];
