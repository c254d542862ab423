// What can be explored of a picture or a text: its views, patches and tokens, and the features active at each.
// Text of the data goes through `textContent` only, so that no label can become markup.
//
// A picture is { views, tokens, activations, features, byIndex, hasLift }. Activations are pairs of a feature and its
// value by position, the largest first. A feature is { feature, rank, score, lift, max, nTokens, argmax, isElsewhere }: its
// index, numbers of the positions that are looked at, or of others if it is active there only, and null for a rank or a
// lift that it has not.

const N_AT_POSITION = 14;

const state = {
  picture: { views: [], tokens: [], activations: [], features: [], byIndex: new Map(), hasLift: false },
  view: null, // one of `picture.views`; a text has none
  feature: null, // an entry of `picture.features`
  pointedAt: null, // the index of a feature that the pointer is on in the list
  position: 0,
  held: false, // whether the position stays when the pointer moves on
  query: "",
  alsoFound: new Set(), // features that match the query in other ways than by its words
  order: "rank", // what the list is sorted by, a key of `orders`
  showsAll: false,
};

const stage = { image: find("#stage img"), canvas: find("#stage canvas"), patches: find("#patches") };

const number = (value) => (value === 0 ? "0" : value.toPrecision(Math.abs(value) >= 1000 ? 4 : 3));
const label = (feature) => data.labels[feature];
// What a feature is called: its index, or with several SAEs the SAE too.
const named = (feature) => data.names?.[feature] ?? feature;
const isPatch = (position) => state.picture.tokens[position]?.kind === "image";

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

// A feature's activation at a position.
function activation(feature, position) {
  const pair = state.picture.activations[position]?.find(([active]) => active === feature);
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
  paint(canvas, pixels, overlay);
  image.style.filter = `grayscale(${overlay}) brightness(${1 - (1 - DIMMED) * overlay})`;
  find("#scale-largest").textContent = number(largest);
  [...stage.patches.querySelectorAll("[role=gridcell]")].forEach((cell, i) => {
    const [row, column] = [Math.floor(i / nColumns) + 1, (i % nColumns) + 1];
    cell.setAttribute("aria-label", `row ${row}, column ${column}: ${number(values[i])}`);
  });
}

function shadeTokens() {
  const note = find("#token-scale");
  if (!note) return;
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
  note.textContent = largest > 0
    ? `Shade: this feature's activation, up to ${number(largest)} on these tokens.`
    : "This feature is active on none of these tokens.";
}

function drawPosition() {
  const { picture, position, held } = state;
  for (const marked of document.querySelectorAll(".at, .held")) marked.classList.remove("at", "held");
  const row = picture.activations[position];
  if (!row) return;
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
  const items = row.slice(0, N_AT_POSITION).map(([feature, value]) => {
    const length = element("span", { className: "length" });
    length.style.width = `${(100 * value) / row[0][1]}%`;
    const button = element("button", { type: "button", onclick: () => pick(feature) },
      element("span", { textContent: named(feature) }), labelElement(label(feature)),
      element("span", { className: "number", textContent: number(value) }), length);
    button.setAttribute("aria-pressed", String(feature === state.feature?.feature));
    return element("li", {}, button);
  });
  find("#position-features").replaceChildren(...items);
  const nMore = row.length - items.length;
  find("#position-rest").textContent =
    row.length === 0 ? "No feature is active here." : nMore > 0 ? `and ${nMore} more` : "";
  document.dispatchEvent(new Event("position"));
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

for (const input of document.querySelectorAll("#controls input")) input.addEventListener("input", drawHeat);
find("#view-choice select").addEventListener("change", (event) => {
  drawView(state.picture.views[event.target.value]);
  drawHeat();
  drawPosition();
});
watch(stage.patches);
watch(find("#tokens"));
find("#scale-colours").style.background = `linear-gradient(to right, ${data.colours.join(", ")})`;
