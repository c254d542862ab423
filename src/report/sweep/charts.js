// What a sweep gave: curves, and texts beside the original's. A report is what `sweep --json` prints, and `pieces`, the
// words of each text and of the original in one. Text goes through `textContent` only, so that nothing of it can become
// markup.

const hasWord = ({ has_word: has }) => ({ true: "yes", false: "no" })[has] ?? "–";

// ---- curves
function drawn(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A chart's size in units of its own, and the frame of what is plotted.
const [WIDTH, HEIGHT] = [400, 190];
const FRAME = { left: 46, right: 390, top: 10, bottom: 160 };

// Round numbers from `low` to `high`, six at most.
function ticks(low, high) {
  const magnitude = 10 ** Math.floor(Math.log10((high - low) / 5));
  const step = magnitude * [1, 2, 5, 10].find((factor) => (high - low) / (magnitude * factor) <= 5);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

// From the range of `values` to `start` … `end`; a range of one value gets some room.
function scale(values, start, end) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = [low - 1, high + 1];
  const place = (value) => start + ((value - low) / (high - low)) * (end - start);
  return { place, ticks: ticks(low, high) };
}

// One value of each strength, which is none where a text has none.
function chart({ original, steered }, title, valueOf) {
  const points = steered
    .map((point, i) => ({ i, strength: point.strength, value: valueOf(point), filled: point.has_word !== false }))
    .filter(({ value }) => value !== null)
    .sort((a, b) => a.strength - b.strength);
  const reference = valueOf(original);
  const values = [...points.map(({ value }) => value), ...(reference === null ? [] : [reference])];
  const made = element("div", {}, element("h3", { textContent: title }));
  if (points.length === 0) {
    made.append(element("p", { className: "note", textContent: "No text has one." }));
    return made;
  }
  const x = scale(steered.map(({ strength }) => strength), FRAME.left + 8, FRAME.right - 8);
  const y = scale([...values, 0], FRAME.bottom - 8, FRAME.top + 8);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": `${title} by strength` });
  for (const value of y.ticks) {
    const at = y.place(value);
    svg.append(
      drawn("line", { x1: FRAME.left, x2: FRAME.right, y1: at, y2: at, class: "grid" }),
      drawn("text", { x: FRAME.left - 6, y: at + 4, class: "end" }, signed(value)),
    );
  }
  for (const value of x.ticks) {
    svg.append(drawn("text", { x: x.place(value), y: FRAME.bottom + 16, class: "middle" }, signed(value)));
  }
  svg.append(drawn("text", { x: (FRAME.left + FRAME.right) / 2, y: HEIGHT - 2, class: "middle" }, "strength"));
  if (reference !== null) {
    const at = y.place(reference);
    svg.append(drawn("line", { x1: FRAME.left, x2: FRAME.right, y1: at, y2: at, class: "original" }));
  }
  const places = points.map(({ strength, value }) => `${x.place(strength)},${y.place(value)}`);
  svg.append(drawn("polyline", { points: places.join(" "), class: "curve" }));
  for (const { i, strength, value, filled } of points) {
    const words = `strength ${signed(strength)}: ${signed(value.toFixed(3))}`;
    const mark = drawn("circle", { cx: x.place(strength), cy: y.place(value), r: 4.5, class: filled ? "mark filled" : "mark" },
      drawn("title", {}, words));
    svg.append(drawn("a", { href: `#strength-${i}`, "aria-label": words }, mark));
  }
  made.append(svg);
  return made;
}

function sweepCharts(report) {
  return [
    chart(report, "KL from the original along its text, in nats", ({ kl }) => kl),
    chart(report, "Log-probability of the text without steering, in nats a token", (point) => point.mean_log_prob),
  ];
}

// What a chart's marks mean.
function describedMarks({ word }) {
  return [
    "The broken line is the original.",
    ...(word === null ? [] : [`A full mark’s text has “${word}”, a hollow one’s does not.`]),
    "A mark leads to its text.",
  ].join(" ");
}

// ---- texts
const placeMarks = { before: "del", after: "ins" };

// Line breaks are shown as a sign, since a broken text may be nothing else.
function mergedText(pieces) {
  const parts = pieces.map(([piece, place]) => {
    const words = piece.replaceAll("\n", "↵");
    return placeMarks[place] ? element(placeMarks[place], { textContent: words }) : words;
  });
  return element("bdi", {}, ...parts);
}

function sweepTexts({ original, steered, word, pieces }) {
  const columns = [["strength", "number"], ["KL", "number"], ["logprob", "number"]];
  if (word !== null) columns.push(["word", ""]);
  columns.push(["text", "text"]);
  const row = (className, name, point, merged) => {
    const shown = mergedText(merged);
    if (point.stop === "length") shown.append(" …");
    const cells = [name, signed(fixed(point.kl)), signed(fixed(point.mean_log_prob))];
    if (word !== null) cells.push(hasWord(point));
    return [className, ...cells, shown];
  };
  const rows = [
    row("original-text", "original", original, [[original.text, "both"]]),
    ...steered.map((point, i) => row("", signed(point.strength), point, pieces[i])),
  ];
  const made = table(columns, rows, "captions");
  made.querySelectorAll("tbody tr").forEach((tr, i) => { if (i > 0) tr.id = `strength-${i - 1}`; });
  return made;
}
