// The heat map's colours; the constants and formulas are those of the PNGs (`src/report/heatmap/overlay.rs`).

// Up to this share of the largest activation, colours fade into the picture.
const FADING = 0.1;
// What is left of the picture's lightness beneath them.
const DIMMED = 0.36;

const colours = data.colours.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
const colour = (share) => colours[Math.round(Math.min(1, Math.max(0, share)) * (colours.length - 1))];
const css = (rgb) => `rgb(${rgb.join(" ")})`;
const isLight = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b > 120;

// Keys' cubic interpolation with a = -1/2 (Catmull-Rom), as in the PNGs.
function cubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return 1.5 * x ** 3 - 2.5 * x ** 2 + 1;
  return x < 2 ? -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2 : 0;
}

// `shares` of [nRows, nColumns], interpolated to `scale` pixels a patch.
function interpolated(shares, nRows, nColumns, scale) {
  const along = (values, n, nOut, at) =>
    Array.from({ length: nOut }, (_, out) => {
      const centre = (out + 0.5) / scale - 0.5;
      let sum = 0;
      let weights = 0;
      for (let i = Math.max(0, Math.ceil(centre - 2)); i <= Math.min(n - 1, Math.floor(centre + 2)); i += 1) {
        sum += cubic(centre - i) * values[at(i)];
        weights += cubic(centre - i);
      }
      return sum / weights;
    });
  const width = nColumns * scale;
  const rows = [];
  for (let row = 0; row < nRows; row += 1) rows.push(along(shares, nColumns, width, (i) => row * nColumns + i));
  const pixels = new Float32Array(nRows * scale * width);
  for (let x = 0; x < width; x += 1) {
    const column = rows.map((row) => row[x]);
    along(column, nRows, nRows * scale, (i) => i).forEach((value, y) => (pixels[y * width + x] = value));
  }
  return pixels;
}

// Draws shares over what is beneath a canvas of as many pixels.
function paint(canvas, pixels, opacity) {
  const drawing = canvas.getContext("2d");
  const bitmap = drawing.createImageData(canvas.width, canvas.height);
  pixels.forEach((share, i) => {
    const alpha = opacity * Math.min(1, Math.max(0, share) / FADING);
    bitmap.data.set([...colour(share), Math.round(255 * alpha)], 4 * i);
  });
  drawing.putImageData(bitmap, 0, 0);
}
