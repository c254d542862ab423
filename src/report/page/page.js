// The page of a file: its pictures one at a time, their captions, and an address that leads to a feature.

// Each picture, once: its features by index, activations by position.
for (const picture of data.pictures) {
  picture.activations = picture.activations.map((row) => {
    const pairs = [];
    for (let i = 0; i < row.length; i += 2) pairs.push([row[i], row[i + 1]]);
    return pairs.sort((a, b) => b[1] - a[1]);
  });
  picture.features = picture.features.map(([feature, score, lift, max, nTokens, argmax], i) => ({
    feature, score, lift, max, nTokens, argmax, rank: i < picture.n_ranked ? i + 1 : null, isElsewhere: i >= picture.n_ranked,
  }));
  picture.byIndex = new Map(picture.features.map((entry) => [entry.feature, entry]));
  picture.hasLift = data.has_lift;
}

function describedIntervention({ kind, feature, value, units, at }) {
  const name = label(feature) === undefined ? feature : `${feature} (${label(feature)})`;
  const unit = { unit: " in unit directions", usual: " × its usual activation" }[units] ?? "";
  const amount = value === null ? "" : `, ${signed(value)}${unit}`;
  return `${kind} ${name}${amount}, at ${at.replaceAll(",", ", ")}`;
}

function drawCaptions() {
  const { original, steered } = state.picture;
  const card = (title, caption, mark, note) => {
    const made = element("div", {}, element("h3", { textContent: title }), element("p", {}, ...markedText(caption.pieces, mark)));
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

function openPicture(picture) {
  find("#picture-name").textContent = picture.name;
  find("#picture-choice select").value = data.pictures.indexOf(picture);
  document.title = `${picture.name}: features`;
  explore(picture);
  drawCaptions();
}

document.addEventListener("pick", ({ detail: feature }) => {
  history.replaceState(null, "", `#${new URLSearchParams({ feature: named(feature) })}`);
});

// Chooses the feature that the page's address names, on this picture or on the first where it is active.
function followAddress() {
  const name = new URLSearchParams(location.hash.slice(1)).get("feature");
  const isMeant = ({ feature }) => String(named(feature)) === name;
  const picture = [state.picture, ...data.pictures].find(({ features }) => features.some(isMeant));
  if (!picture) return;
  if (picture !== state.picture) openPicture(picture);
  pick(picture.features.find(isMeant).feature);
  find(".option[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
}
window.addEventListener("hashchange", followAddress);

find("#about").textContent = `Model ${data.model} · SAE ${data.sae}, ${data.hook} · prompt “${data.prompt}”`;
find("#ranking").textContent = `Ranked by the ${data.ranked_by}.`;
if (data.pictures.length > 1) {
  const select = find("#picture-choice select");
  data.pictures.forEach((picture, i) => select.append(element("option", { value: i, textContent: picture.name })));
  select.addEventListener("change", () => openPicture(data.pictures[select.value]));
  find("#picture-choice").hidden = false;
}
openPicture(data.pictures[0]);
followAddress();
