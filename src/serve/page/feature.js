// The chosen feature: what can be done with it, and its card; and the search for features that are not active here.

// A feature that is not active on this picture, so that it can be listed and chosen all the same.
function listInactive(feature) {
  const { features, byIndex } = state.picture;
  if (byIndex.has(feature)) return;
  const entry = { feature, score: 0, lift: null, max: 0, nTokens: 0, argmax: state.position, rank: null, isElsewhere: false };
  features.push(entry);
  byIndex.set(feature, entry);
}

// Chooses a feature by the server's name for it, active or not.
function pickAnywhere(name) {
  const feature = idOf(name);
  listInactive(feature);
  pick(feature);
  find(".option[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
}

// ---- the page's address
document.addEventListener("pick", ({ detail: feature }) => {
  history.replaceState(null, "", `#${new URLSearchParams({ feature: named(feature) })}`);
});

function followAddress() {
  const name = new URLSearchParams(location.hash.slice(1)).get("feature");
  if (name !== null) pickAnywhere(/^\d+$/.test(name) ? Number(name) : name);
}
window.addEventListener("hashchange", followAddress);

// ---- search, in all labels
const searchLabels = debounced(async (query) => {
  if (query.trim() === "") return;
  try {
    const { labels } = await getJson(`/api/labels?${new URLSearchParams({ q: query.trim(), top: 50 })}`);
    const features = labels.map(({ feature, label: text }) => remember(feature, text));
    features.forEach(listInactive);
    if (state.query !== query) return;
    state.alsoFound = new Set(features); // those with a typing error do not hold the query
    drawList();
  } catch (error) {
    showError(error);
  }
}, 200);
find("#search").addEventListener("input", ({ target }) => searchLabels(target.value));

// ---- what can be done
const chosen = () => state.feature?.feature;
const cardDetails = find("#card details");

function drawCard() {
  const feature = chosen();
  find("#card").hidden = feature === undefined;
  if (feature === undefined) return;
  find("#card-title").replaceChildren(...titleOf(feature));
  drawSweepForm();
  find("#card-body").replaceChildren();
  if (cardDetails.open) fillCard();
}
document.addEventListener("choose", drawCard);
cardDetails.addEventListener("toggle", () => { if (cardDetails.open) fillCard(); });

find("#subtract").addEventListener("click", () => addIntervention(chosen()));
find("#add").addEventListener("click", () => addIntervention(chosen(), "steer", -startOf(kindOf("steer"), state.feature.max)));
find("#ablate").addEventListener("click", () => addIntervention(chosen(), "ablate"));
find("#sweep-it").addEventListener("click", () => {
  openTab("sweep");
  find("#sweep-from").focus();
});
find("#list").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && chosen() !== undefined) addIntervention(chosen());
});

// At the position that is held: the chosen feature's intervention, or a new one.
const atHere = element("button", { type: "button", className: "button", hidden: true, textContent: "Intervene only here" });
find("#position-hint").after(atHere);
document.addEventListener("position", () => { atHere.hidden = !state.held || chosen() === undefined; });
atHere.addEventListener("click", () => {
  const isOfChosen = ({ entry }) => entry.feature !== undefined && idOf(entry.feature) === chosen();
  if (!interventions.some(isOfChosen)) addIntervention(chosen());
  for (const { entry } of interventions.filter(isOfChosen)) entry.at = String(state.position);
  drawInterventions();
  changed();
});

// ---- its card
const cards = new Map(); // by feature, what the server said

async function fillCard() {
  const feature = chosen();
  const body = find("#card-body");
  try {
    if (!cards.has(feature)) {
      body.replaceChildren(element("p", { className: "note", textContent: "Looking it up …" }));
      cards.set(feature, await getJson(`/api/features/${encodeURIComponent(named(feature))}`));
    }
    if (feature === chosen()) body.replaceChildren(...drawnCard(cards.get(feature)));
  } catch (error) {
    body.replaceChildren();
    showError(error);
  }
}

function drawnCard(card) {
  const numbers = [["threshold", card.threshold], ["encoder norm", card.encoder_norm], ["decoder norm", card.decoder_norm], ["usual activation", card.usual]]
    .filter(([, value]) => typeof value === "number")
    .map(([name, value]) => `${name} ${number(value)}`);
  const parts = [element("p", { className: "note", textContent: [card.hook_point, ...numbers].join(" · ") })];
  if (card.neuronpedia) {
    const link = element("a", { href: card.neuronpedia, target: "_blank", rel: "noreferrer", textContent: "Its page on Neuronpedia" });
    parts.push(element("p", { className: "note" }, link));
  }
  const tokens = (title, list, sign) => {
    const chips = list.map(({ text, logit }) =>
      element("span", {}, element("bdi", { textContent: text }), element("small", { textContent: ` ${sign}${Math.abs(logit).toFixed(2)}` })));
    return [element("h3", { textContent: title }), element("div", { className: "chips" }, ...chips)];
  };
  if (card.tokens) {
    parts.push(...tokens("Tokens that it promotes", card.tokens.promoted, "+"), ...tokens("Tokens that it suppresses", card.tokens.suppressed, "−"));
  }
  const neighbours = card.neighbours.map(({ feature, label: text, cosine }) => {
    remember(feature, text);
    const button = element("button", { type: "button", className: "plain", onclick: () => pickAnywhere(feature) },
      element("span", { textContent: feature }), labelElement(text), element("span", { className: "number", textContent: cosine.toFixed(2) }));
    return element("li", {}, button);
  });
  parts.push(element("h3", { textContent: "Neighbours, by the cosine of directions" }), element("ol", { className: "neighbours" }, ...neighbours));
  return parts;
}
