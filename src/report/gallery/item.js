// How an item looks: a picture with the feature over it, or a token in its context, its class and its name.

// The longest side of a heat map, in pixels of its own.
const MAP_SIDE = 168;

const counted = (n) => n.toLocaleString("en");
const short = (value) => String(Number(value.toPrecision(4)));
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

function heatMap({ grid: [nRows, nColumns], place, patches }) {
  const shares = new Float32Array(nRows * nColumns);
  for (let i = 0; i < patches.length; i += 2) shares[patches[i]] = patches[i + 1] / 255;
  const scale = Math.ceil(MAP_SIDE / Math.max(nRows, nColumns));
  const canvas = element("canvas", { width: nColumns * scale, height: nRows * scale });
  paint(canvas, interpolated(shares, nRows, nColumns, scale), 1);
  ["left", "top", "width", "height"].forEach((side, i) => (canvas.style[side] = `${100 * place[i]}%`));
  return canvas;
}

const reasons = { gone: "The picture is not there.", changed: "The picture has changed since the scan." };

function picture({ picture: shown, missing, map }) {
  if (missing !== null) return element("div", { className: "missing", textContent: reasons[missing] });
  if (shown === null) return "";
  const { file, size: [width, height] } = shown;
  const image = element("img", { src: `../pictures/${file}`, width, height, alt: "", loading: "lazy" });
  const stage = element("div", { className: map === null ? "stage" : "stage mapped" }, image);
  if (map !== null) stage.append(heatMap(map));
  return stage;
}

function context({ before, token, after }) {
  return element("bdi", { className: "context" }, before, element("mark", { textContent: token }), after);
}

function itemElement(item) {
  const { name, class: itsClass, max, count, token } = item;
  const rows = token === null ? "image rows" : "tokens";
  const value = element("b", { textContent: short(max), title: `on ${counted(count)} ${rows}` });
  const caption = element("figcaption", {}, value, " ");
  if (itsClass !== null) caption.append(element("bdi", { className: "class", textContent: itsClass }), " ");
  caption.append(element("bdi", { className: "name", textContent: name }));
  return element("figure", {}, token === null ? picture(item) : context(token), caption);
}
