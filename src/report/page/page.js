// The page: what is shown, and what clicks and keys do. Text of the data goes through `textContent`
// only, so that no label can become markup.

// Rows of the feature list that are made at once; a button brings the others.
const N_ROWS = 300;
const N_AT_POSITION = 14;

const state = {
  picture: data.pictures[0],
  view: null, // one of `picture.views`; a text has none
  feature: null, // an entry of `picture.features`
  pointedAt: null, // the index of a feature that the pointer is on in the list
  position: 0,
  held: false, // whether the position stays when the pointer moves on
  query: "",
  order: "rank", // what the list is sorted by, a key of `orders`
  showsAll: false,
};

const stage = { image: find("#stage img"), canvas: find("#stage canvas"), patches: find("#patches") };

const number = (value) => (value === 0 ? "0" : value.toPrecision(Math.abs(value) >= 1000 ? 4 : 3));
const label = (feature) => data.labels[feature];
// What a feature is called: its index, or with several SAEs the SAE too.
const named = (feature) => data.names?.[feature] ?? feature;
// A label of its own writing direction, so that it does not turn its neighbours round.
function labelElement(feature) {
  const text = label(feature);
  return element("bdi", { textContent: text ?? "no label", className: text === undefined ? "no-label" : "" });
}
const isPatch = (position) => state.picture.tokens[position].kind === "image";

// The position of a view's patch, and the patch at a position.
const positionOfPatch = (view, row, column) => view.first + row * view.stride + column;
function patchAt(position) {
  for (const view of state.picture.views) {
    const place = position - view.first;
    const [row, column] = [Math.floor(place / view.stride), place % view.stride];
    if (row >= 0 && row < view.grid[0] && column < view.grid[1]) return { view, row, column };
  }
  return null; // a row that shows nothing
}

// Each picture, once: its features by index, activations by position.
for (const picture of data.pictures) {
  picture.activations = picture.activations.map((row) => {
    const pairs = [];
    for (let i = 0; i < row.length; i += 2) pairs.push([row[i], row[i + 1]]);
    return pairs.sort((a, b) => b[1] - a[1]);
  });
  picture.features = picture.features.map(([feature, score, lift, max, nTokens, argmax], i) => ({
    feature, score, lift, max, nTokens, argmax, rank: i < picture.n_ranked ? i + 1 : null,
  }));
  picture.byIndex = new Map(picture.features.map((entry) => [entry.feature, entry]));
}

// A feature's activation at a position.
function activation(feature, position) {
  const pair = state.picture.activations[position].find(([active]) => active === feature);
  return pair ? pair[1] : 0;
}

// A feature's activation at each position.
const activations = (feature) => Float32Array.from(state.picture.tokens, (_, position) => activation(feature, position));

// ---- drawing
// What the buttons say, or that of a feature that the pointer is on in the list.
function drawHeat() {
  if (!state.view) return;
  const [nRows, nColumns] = state.view.grid;
  const everywhere = activations(state.pointedAt ?? state.feature?.feature);
  const values = Float32Array.from({ length: nRows * nColumns }, (_, i) =>
    everywhere[positionOfPatch(state.view, Math.floor(i / nColumns), i % nColumns)]);
  const largest = Math.max(...values);
  const between = find("input[name=between]:checked").value;
  const isShown = largest > 0 && (between !== "none" || state.pointedAt !== null);
  const isSmooth = between !== "steps";
  const scale = isSmooth ? Math.ceil(288 / nColumns) : 1;
  const overlay = isShown ? Number(find("#opacity").value) / 100 : 0;
  const shares = values.map((value) => (largest > 0 ? value / largest : 0));
  const pixels = isSmooth ? interpolated(shares, nRows, nColumns, scale) : shares;
  const { canvas, image } = stage;
  canvas.width = nColumns * scale;
  canvas.height = nRows * scale;
  canvas.classList.toggle("steps", !isSmooth);
  const drawing = canvas.getContext("2d");
  const bitmap = drawing.createImageData(canvas.width, canvas.height);
  pixels.forEach((share, i) => {
    const opacity = overlay * Math.min(1, Math.max(0, share) / FADING);
    bitmap.data.set([...colour(share), Math.round(255 * opacity)], 4 * i);
  });
  drawing.putImageData(bitmap, 0, 0);
  image.style.filter = `grayscale(${overlay}) brightness(${1 - (1 - DIMMED) * overlay})`;
  find("#scale-largest").textContent = number(largest);
  [...stage.patches.querySelectorAll("[role=gridcell]")].forEach((cell, i) => {
    const [row, column] = [Math.floor(i / nColumns) + 1, (i % nColumns) + 1];
    cell.setAttribute("aria-label", `row ${row}, column ${column}: ${number(values[i])}`);
  });
}

function shadeTokens() {
  const values = activations(state.feature?.feature);
  const largest = Math.max(0, ...values.filter((_, position) => !isPatch(position)));
  for (const chip of document.querySelectorAll(".chips button")) {
    const value = values[chip.dataset.position];
    const rgb = value > 0 ? colour(value / largest) : null;
    chip.style.background = rgb ? css(rgb) : "";
    chip.style.color = rgb ? (isLight(rgb) ? "#000" : "#fff") : "";
    chip.title = `activation ${number(value)}`;
    chip.setAttribute("aria-label", `token ${chip.textContent}: activation ${number(value)}`);
  }
  const note = find("#token-scale");
  note.textContent = largest > 0
    ? `Shade: this feature's activation, up to ${number(largest)} on these tokens.`
    : "This feature is active on none of these tokens.";
}

function drawPosition() {
  const { picture, position, held } = state;
  for (const marked of document.querySelectorAll(".at, .held")) marked.classList.remove("at", "held");
  const patch = isPatch(position) ? patchAt(position) : null;
  const at = document.getElementById(`position-${position}`);
  at?.classList.add(held ? "held" : "at");
  if (patch?.view === state.view && at) stage.patches.setAttribute("aria-activedescendant", at.id);
  const title = find("#position-title");
  if (patch) {
    const of = picture.views.length > 1 ? ` of view ${picture.views.indexOf(patch.view) + 1}` : "";
    title.textContent = `Patch in row ${patch.row + 1}, column ${patch.column + 1}${of}`;
  } else if (isPatch(position)) {
    title.textContent = "A row of the image that shows no patch";
  } else {
    title.replaceChildren("Token ", element("bdi", { textContent: `“${picture.tokens[position].text}”` }));
  }
  find("#position-hint").textContent =
    `Position ${position} of the run. ${held ? "Click it again, or press Escape, to let it go." : "Click it to hold it."}`;
  const row = picture.activations[position];
  const items = row.slice(0, N_AT_POSITION).map(([feature, value]) => {
    const length = element("span", { className: "length" });
    length.style.width = `${(100 * value) / row[0][1]}%`;
    const button = element("button", { type: "button", onclick: () => pick(feature) },
      element("span", { textContent: named(feature) }), labelElement(feature),
      element("span", { className: "number", textContent: number(value) }), length);
    button.setAttribute("aria-pressed", String(feature === state.feature?.feature));
    return element("li", {}, button);
  });
  find("#position-features").replaceChildren(...items);
  const nMore = row.length - items.length;
  find("#position-rest").textContent =
    row.length === 0 ? "No feature is active here." : nMore > 0 ? `and ${nMore} more` : "";
}

// ---- the feature list
const HERE = "activation at this position";
const columns = ["rank", "feature", data.has_lift ? "lift" : "score", "max", "tokens"];

// By what the list can be sorted: a key for each feature, the smallest first; equal ones stay ranked.
const orders = {
  rank: ({ rank }) => rank ?? Infinity,
  [columns[2]]: ({ lift, score }) => -(lift ?? score),
  max: ({ max }) => -max,
  tokens: ({ nTokens }) => -nTokens,
  feature: ({ feature }) => feature,
  label: ({ feature }) => label(feature)?.toLowerCase() ?? "\u{10ffff}", // those without one are last
  [HERE]: ({ feature }) => -activation(feature, state.position),
};

function matches() {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const isFound = ({ feature }) => {
    const text = `${named(feature)} ${label(feature) ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  return state.picture.features
    .filter(isFound)
    .map((entry) => [orders[state.order](entry), entry])
    .sort(([a], [b]) => (a < b ? -1 : Number(a > b)))
    .map(([, entry]) => entry);
}

function drawList() {
  const found = matches();
  const shown = state.showsAll ? found : found.slice(0, N_ROWS);
  const options = shown.map((entry) => {
    const { feature, rank, score, lift, max, nTokens } = entry;
    const cells = [rank ?? "–", named(feature), number(lift ?? score), number(max), nTokens];
    const option = element("div", { className: "option", id: `feature-${feature}`, onclick: () => pick(feature) },
      ...cells.map((cell) => element("span", { className: "number", textContent: cell })), labelElement(feature));
    option.setAttribute("role", "option");
    return option;
  });
  const more = find("#more");
  more.hidden = found.length === shown.length;
  more.textContent = `Show ${found.length - shown.length} more`;
  find("#list").replaceChildren(...options);
  const nAll = state.picture.features.length;
  find("#n-found").textContent = state.query ? `${found.length} of ${nAll} active features` : `${nAll} active features`;
  markChosen();
}

function markChosen() {
  for (const option of document.querySelectorAll(".option")) {
    const isChosen = option.id === `feature-${state.feature?.feature}`;
    option.setAttribute("aria-selected", String(isChosen));
  }
  const chosen = find(".option[aria-selected=true]");
  if (chosen) find("#list").setAttribute("aria-activedescendant", chosen.id);
  else find("#list").removeAttribute("aria-activedescendant");
}

function choose(feature) {
  state.feature = state.picture.byIndex.get(feature) ?? null;
  if (state.feature) {
    const { rank, max, nTokens } = state.feature;
    const title = [`Feature ${named(feature)}`];
    if (label(feature) !== undefined) title.push(" · ", labelElement(feature));
    find("#chosen").replaceChildren(...title);
    find("#chosen-numbers").textContent = rank === null
      ? `Active outside of ${data.positions} only, up to ${number(max)}.`
      : `Rank ${rank}, up to ${number(max)}, active at ${nTokens} of ${data.positions}.`;
    // A list that follows the position would be sorted anew beneath the keys.
    if (!state.held && state.order !== HERE) {
      state.position = state.feature.argmax;
      const view = patchAt(state.position)?.view;
      if (view && view !== state.view) drawView(view);
    }
  } else {
    find("#chosen").textContent = "No feature is active";
  }
  drawHeat();
  shadeTokens();
  drawPosition();
  markChosen();
}

// Chooses a feature because someone asked for it: it is drawn, and the page's address leads to it.
function pick(feature) {
  const none = find("input[name=between][value=none]");
  if (none.checked) find("input[name=between][value=smooth]").checked = true;
  choose(feature);
  history.replaceState(null, "", `#${new URLSearchParams({ feature: named(feature) })}`);
}

// Chooses the feature that the page's address names, on this picture or on the first where it is active.
function followAddress() {
  const name = new URLSearchParams(location.hash.slice(1)).get("feature");
  const isMeant = ({ feature }) => String(named(feature)) === name;
  const picture = [state.picture, ...data.pictures].find(({ features }) => features.some(isMeant));
  if (!picture) return;
  if (picture !== state.picture) open(picture);
  pick(picture.features.find(isMeant).feature);
  find(".option[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
}

// ---- positions under the pointer or the keys
function show(position) {
  state.position = position;
  drawPosition();
  if (state.order === HERE) drawList();
}

function hold(position) {
  state.held = !(state.held && state.position === position);
  show(position);
}

function watch(parent) {
  const positionOf = (event) => event.target.closest("[data-position]")?.dataset.position;
  parent.addEventListener("pointerover", (event) => {
    const position = positionOf(event);
    if (position !== undefined && !state.held) show(Number(position));
  });
  parent.addEventListener("click", (event) => {
    const position = positionOf(event);
    if (position !== undefined) hold(Number(position));
  });
}

stage.patches.addEventListener("keydown", (event) => {
  const { view } = state;
  const [nRows, nColumns] = view.grid;
  const patch = patchAt(state.position);
  let [row, column] = patch?.view === view ? [patch.row, patch.column] : [0, 0];
  if (event.key === "ArrowLeft" && column > 0) column -= 1;
  else if (event.key === "ArrowRight" && column < nColumns - 1) column += 1;
  else if (event.key === "ArrowUp" && row > 0) row -= 1;
  else if (event.key === "ArrowDown" && row < nRows - 1) row += 1;
  else if (event.key === "Home") column = 0;
  else if (event.key === "End") column = nColumns - 1;
  else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); hold(positionOfPatch(view, row, column)); return; }
  else return;
  event.preventDefault();
  show(positionOfPatch(view, row, column));
});

find("#tokens").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const chips = [...document.querySelectorAll(".chips button")];
  const next = chips[chips.indexOf(document.activeElement) + step];
  if (!next) return;
  for (const chip of chips) chip.tabIndex = chip === next ? 0 : -1;
  next.focus();
});
find("#tokens").addEventListener("focusin", (event) => {
  const position = event.target.dataset.position;
  if (position !== undefined && !state.held) show(Number(position));
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !state.held) return;
  state.held = false;
  drawPosition();
});

find("#list").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
  const options = [...document.querySelectorAll(".option")];
  if (step === undefined || options.length === 0 || event.target !== find("#list")) return;
  event.preventDefault();
  const current = options.findIndex((option) => option.getAttribute("aria-selected") === "true");
  const next = options[Math.min(options.length - 1, Math.max(0, current + step))];
  pick(Number(next.id.slice("feature-".length)));
  next.scrollIntoView({ block: "nearest" });
});

// The map of the feature that the pointer is on, as long as it is there.
function pointAt(option) {
  const feature = option ? Number(option.id.slice("feature-".length)) : null;
  if (feature === state.pointedAt) return;
  state.pointedAt = feature;
  drawHeat();
}
find("#list").addEventListener("pointerover", (event) => pointAt(event.target.closest(".option")));
find("#list").addEventListener("pointerleave", () => pointAt(null));

find("#more").addEventListener("click", () => {
  state.showsAll = true;
  drawList();
});

find("#search").addEventListener("input", (event) => {
  state.query = event.target.value;
  state.showsAll = false;
  drawList();
});
find("#search").addEventListener("keydown", (event) => {
  const first = matches()[0];
  if (event.key === "Enter" && first) pick(first.feature);
  if (event.key === "ArrowDown") { event.preventDefault(); find("#list").focus(); }
});

find("#order").addEventListener("change", (event) => {
  state.order = event.target.value;
  drawList();
});

window.addEventListener("hashchange", followAddress);

for (const input of document.querySelectorAll("#controls input")) input.addEventListener("input", drawHeat);
find("#view-choice select").addEventListener("change", (event) => {
  drawView(state.picture.views[event.target.value]);
  drawHeat();
  drawPosition();
});
watch(stage.patches);
watch(find("#tokens"));

// ---- what changes with the picture only
function describedIntervention({ kind, feature, value, units, at }) {
  const name = label(feature) === undefined ? feature : `${feature} (${label(feature)})`;
  const unit = units === "unit" ? " in unit directions" : "";
  const amount = value === null ? "" : `, ${String(value).replace("-", "−")}${unit}`;
  return `${kind} ${name}${amount}, at ${at.replaceAll(",", ", ")}`;
}

function drawCaptions() {
  const { original, steered } = state.picture;
  const card = (title, caption, mark, note) => {
    const pieces = caption.pieces.map(([text, isChanged]) => isChanged ? element(mark, { textContent: text }) : text);
    const made = element("div", {}, element("h3", { textContent: title }), element("p", {}, ...pieces));
    if (caption.pieces.length === 0) made.append(element("p", { className: "note", textContent: "no text" }));
    if (caption.stop === "length") made.append(element("p", { className: "note", textContent: "cut off at the limit of tokens" }));
    if (note) made.append(element("p", { className: "note", textContent: note }));
    return made;
  };
  const cards = [];
  if (original) cards.push(card(steered ? "Original output" : "Output", original, "del"));
  if (steered) cards.push(card("After intervention", steered, "ins", data.interventions.map(describedIntervention).join("; ")));
  find("#captions").replaceChildren(...cards);
  find("#captions").hidden = cards.length === 0;
}

function drawTokens() {
  const chips = (wanted) => {
    const made = element("div", { className: "chips" });
    state.picture.tokens.forEach((token, position) => {
      const view = wanted === "text" && state.picture.views.find(({ first }) => first === position);
      if (view) {
        const nPatches = view.grid[0] * view.grid[1];
        made.append(element("span", { className: "image", textContent: `${nPatches} patches` }));
      }
      if (token.kind !== wanted) return;
      const chip = element("button", { type: "button", textContent: token.text, id: `position-${position}`, tabIndex: -1 });
      chip.dataset.position = position;
      made.append(chip);
    });
    return made;
  };
  const parts = [element("h3", { textContent: "Prompt" }), chips("text")];
  const caption = chips("generated");
  if (caption.children.length > 0) parts.push(element("h3", { textContent: "Output, as the model wrote it" }), caption);
  parts.push(element("p", { className: "note", id: "token-scale" }));
  find("#tokens").replaceChildren(...parts);
  const first = find(".chips button");
  if (first) first.tabIndex = 0;
}

function drawViews() {
  const { views } = state.picture;
  for (const id of ["stage", "scale", "controls", "whole"]) find(`#${id}`).hidden = views.length === 0;
  find("#view-choice").hidden = views.length < 2;
  const options = views.map(({ grid }, i) => element("option", { value: i, textContent: `${i + 1}: ${grid.join(" × ")} patches` }));
  find("#view-choice select").replaceChildren(...options);
  state.view = null;
  if (views.length > 0) drawView(views[0]);
}

function drawView(view) {
  state.view = view;
  find("#view-choice select").value = state.picture.views.indexOf(view);
  stage.image.src = view.image;
  const { whole } = view;
  find("#whole").hidden = !whole;
  if (whole) {
    find("#whole img").src = whole.image;
    const frame = find("#whole span").style;
    ["left", "top", "width", "height"].forEach((side, i) => { frame[side] = `${100 * whole.frame[i]}%`; });
  }
  const [nRows, nColumns] = view.grid;
  stage.patches.style.gridTemplate = `repeat(${nRows}, 1fr) / repeat(${nColumns}, 1fr)`;
  const rows = Array.from({ length: nRows }, (_, row) => {
    const made = element("div");
    made.setAttribute("role", "row");
    for (let column = 0; column < nColumns; column += 1) {
      const position = positionOfPatch(view, row, column);
      const cell = element("span", { id: `position-${position}` });
      cell.setAttribute("role", "gridcell");
      cell.dataset.position = position;
      made.append(cell);
    }
    return made;
  });
  stage.patches.replaceChildren(...rows);
}

function open(picture) {
  state.picture = picture;
  state.pointedAt = null;
  state.held = false;
  state.position = 0;
  find("#picture-name").textContent = picture.name;
  find("#picture-choice select").value = data.pictures.indexOf(picture);
  document.title = `${picture.name}: features`;
  drawCaptions();
  drawViews();
  drawTokens();
  drawList();
  const stays = picture.byIndex.has(state.feature?.feature);
  choose(stays ? state.feature.feature : picture.features[0]?.feature);
}

find("#about").textContent = `Model ${data.model} · SAE ${data.sae}, ${data.hook} · prompt “${data.prompt}”`;
find("#ranking").textContent = `Ranked by the ${data.ranked_by}.`;
find("#list-head").replaceChildren(...columns.map((name) => element("span", { textContent: name, className: "number" })));
find("#order").replaceChildren(...Object.keys(orders).map((name) => element("option", { value: name, textContent: name })));
find("#scale-colours").style.background = `linear-gradient(to right, ${data.colours.join(", ")})`;
if (data.pictures.length > 1) {
  const select = find("#picture-choice select");
  data.pictures.forEach((picture, i) => select.append(element("option", { value: i, textContent: picture.name })));
  select.addEventListener("change", () => open(data.pictures[select.value]));
  find("#picture-choice").hidden = false;
}
open(data.pictures[0]);
followAddress();
