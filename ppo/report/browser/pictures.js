"use strict";

/* What the network sees, as pictures, and rewards as marks in a trace. */

/** Paint one or three channels of an image (C, H, W), with a tint where there is heat. */
function paintPicture(canvas, pixels, channel, group, size, heat) {
  const pen = canvas.getContext("2d"), image = pen.createImageData(canvas.width, canvas.height);
  const tint = [255, 92, 30];
  for (let at = 0; at < size; at++) {
    const weight = heat ? 0.85 * heat[at] * heat[at] : 0;
    for (let part = 0; part < 3; part++) {
      const pixel = pixels[(channel + (group === 3 ? part : 0)) * size + at];
      image.data[4 * at + part] = pixel + (tint[part] - pixel) * weight;
    }
    image.data[4 * at + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
}

/** Mark rewards at the foot of a plot over steps. */
function drawRewards(plot, marks) {
  const ratio = uPlot.pxRatio, floor = plot.bbox.top + plot.bbox.height - 4 * ratio, size = 5 * ratio;
  for (const { step, reward } of marks) {
    const x = plot.valToPos(step, "x", true), up = reward > 0;
    plot.ctx.fillStyle = colour(up ? "good" : "bad");
    plot.ctx.beginPath();
    plot.ctx.moveTo(x - size, up ? floor : floor - 1.6 * size);
    plot.ctx.lineTo(x + size, up ? floor : floor - 1.6 * size);
    plot.ctx.lineTo(x, up ? floor - 1.6 * size : floor);
    plot.ctx.fill();
  }
}
