// The list of a picture's features, and the one that is chosen of them.

// Rows that are made at once; a button brings the others.
const N_ROWS = 300;
const HERE = "activation at this position";

// By what the list can be sorted: a key for each feature, the smallest first; equal ones stay ranked.
const orders = {
  rank: ({ rank }) => rank ?? Infinity,
  lift: ({ lift }) => -lift,
  score: ({ score }) => -score,
  max: ({ max }) => -max,
  tokens: ({ nTokens }) => -nTokens,
  feature: ({ feature }) => feature,
  label: ({ feature }) => label(feature)?.toLowerCase() ?? "\u{10ffff}", // those without one are last
  [HERE]: ({ feature }) => -activation(feature, state.position),
};

// What a picture's features have: a lift, or a score alone.
function drawColumns() {
  const { hasLift } = state.picture;
  const columns = ["rank", "feature", hasLift ? "lift" : "score", "max", "tokens"];
  find("#list-head").replaceChildren(...columns.map((name) => element("span", { textContent: name, className: "number" })));
  const names = Object.keys(orders).filter((name) => name !== (hasLift ? "score" : "lift"));
  find("#order").replaceChildren(...names.map((name) => element("option", { value: name, textContent: name })));
  if (!names.includes(state.order)) state.order = "rank";
  find("#order").value = state.order;
}

function matches() {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const isFound = ({ feature }) => {
    const text = `${named(feature)} ${label(feature) ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word)) || state.alsoFound.has(feature);
  };
  return state.picture.features
    .filter((entry) => isFound(entry) && (entry.nTokens > 0 || words.length > 0))
    .map((entry) => [orders[state.order](entry), entry])
    .sort(([a], [b]) => (a < b ? -1 : Number(a > b)))
    .map(([, entry]) => entry);
}

function drawList() {
  const found = matches();
  const shown = state.showsAll ? found : found.slice(0, N_ROWS);
  const options = shown.map((entry) => {
    const { feature, rank, score, lift, max, nTokens } = entry;
    const second = !state.picture.hasLift ? number(score) : lift === null ? "–" : number(lift);
    const cells = [rank ?? "–", named(feature), second, number(max), nTokens];
    const option = element("div", { className: "option", id: `feature-${feature}`, onclick: () => pick(feature) },
      ...cells.map((cell) => element("span", { className: "number", textContent: cell })), labelElement(label(feature)));
    option.setAttribute("role", "option");
    return option;
  });
  const more = find("#more");
  more.hidden = found.length === shown.length;
  more.textContent = `Show ${found.length - shown.length} more`;
  find("#list").replaceChildren(...options);
  const nAll = state.picture.features.filter(({ nTokens }) => nTokens > 0).length;
  const nFound = found.filter(({ nTokens }) => nTokens > 0).length;
  const inactive = found.length > nFound ? `, ${found.length - nFound} others` : "";
  find("#n-found").textContent = state.query ? `${nFound} of ${nAll} active features${inactive}` : `${nAll} active features`;
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

// A link to the feature's page on Neuronpedia, where it has one.
function neuronpediaLink(feature) {
  const [, sae, index] = /^(?:(.*)\/)?(\d+)$/s.exec(named(feature));
  if (!Object.hasOwn(data.neuronpedia, sae ?? "")) return [];
  const address = data.neuronpedia[sae ?? ""];
  const link = element("a", { href: `${address}/${index}`, target: "_blank", rel: "noreferrer", textContent: "On Neuronpedia" });
  return [" ", link];
}

function choose(feature) {
  state.feature = state.picture.byIndex.get(feature) ?? null;
  if (state.feature) {
    const { rank, max, nTokens, isElsewhere } = state.feature;
    const title = [`Feature ${named(feature)}`];
    if (label(feature) !== undefined) title.push(" · ", labelElement(label(feature)));
    find("#chosen").replaceChildren(...title);
    const place = rank === null ? "Active" : `Rank ${rank}, active`;
    find("#chosen-numbers").textContent = nTokens === 0
      ? "Not active here."
      : isElsewhere
        ? `Active outside of ${data.positions} only, up to ${number(max)}.`
        : `${place} at ${nTokens} of ${data.positions}, up to ${number(max)}.`;
    find("#chosen-numbers").append(...neuronpediaLink(feature));
    // A list that follows the position would be sorted anew beneath the keys.
    if (!state.held && state.order !== HERE) {
      state.position = state.feature.argmax;
      const view = patchAt(state.position)?.view;
      if (view && view !== state.view) drawView(view);
    }
  } else {
    find("#chosen").textContent = "No feature is active";
    find("#chosen-numbers").textContent = "";
  }
  drawHeat();
  shadeTokens();
  drawPosition();
  markChosen();
  document.dispatchEvent(new Event("choose"));
}

// Chooses a feature because someone asked for it: it is drawn, and who listens is told.
function pick(feature) {
  const none = find("input[name=between][value=none]");
  if (none.checked) find("input[name=between][value=smooth]").checked = true;
  choose(feature);
  document.dispatchEvent(new CustomEvent("pick", { detail: feature }));
}

// Shows a picture; the feature that is chosen stays so, where it is active at what is looked at.
function explore(picture) {
  state.picture = picture;
  state.pointedAt = null;
  state.held = false;
  state.position = 0;
  drawViews();
  drawTokens();
  drawColumns();
  drawList();
  const stays = picture.byIndex.get(state.feature?.feature)?.isElsewhere === false;
  choose(stays ? state.feature.feature : picture.features[0]?.feature);
}

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
  state.alsoFound = new Set();
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
