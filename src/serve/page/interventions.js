// The list of interventions: each an entry of a saved set, with what the page knows besides.

// A first strength, as a share of the feature's largest activation: enough to change a caption, mostly, and too
// little to break it.
const START = 0.65;
// The slider's reach for numbers that are no multiples of the feature: factors, and what nothing is known of.
const PLAIN_REACH = 4;
const UNKNOWN_REACH = 20;

// Each { entry, isOn, largest }: the entry as a saved set has it, and the feature's largest activation when it was last
// known.
let interventions = [];

const kindOf = (name) => asked.model.kinds.find((kind) => kind.name === name);
const active = () => interventions.filter(({ isOn }) => isOn).map(({ entry }) => entry);
const twoDigits = (value) => Number(value.toPrecision(2));

// What an intervention is called.
const subject = ({ feature, label }) => (feature === undefined ? label ?? "vector" : label ? `${label} (${feature})` : `feature ${feature}`);

// The same of a feature, as nodes.
const titleOf = (feature) => (label(feature) === undefined ? [`feature ${named(feature)}`] : [labelElement(label(feature)), ` (${named(feature)})`]);

function largestOf({ feature }) {
  return feature === undefined ? 0 : state.picture.byIndex.get(idOf(feature))?.max ?? 0;
}

// The feature's largest activation in the unit of numbers: of usual ones, about 1.
const inUnits = (units, largest) => (units === "usual" ? 1 : largest);

// The number with which a kind starts.
function startOf(kind, largest) {
  const reach = largest || UNKNOWN_REACH / 2;
  return { steer: -twoDigits(START * reach), clamp: twoDigits(2 * reach), scale: 0, project: 0, cap: twoDigits(reach / 2), vector: 1 }[kind.name]
    ?? (kind.number === "units" ? twoDigits(reach) : kind.number === "plain" ? 1 : null);
}

// The slider's range: by the feature's largest activation on this picture, and wide enough for the number.
function reachOf({ entry, largest }) {
  const kind = kindOf(entry.kind);
  const isPlain = ["scale", "project"].includes(kind.name) || entry.units === "usual";
  const first = isPlain ? PLAIN_REACH : 2 * largest || UNKNOWN_REACH;
  const reach = Math.max(first, Math.abs(entry.value ?? 0));
  const step = 10 ** Math.floor(Math.log10(reach / 40));
  const most = Math.ceil(reach / step) * step;
  return { low: kind.name === "clamp" && !(entry.value < 0) ? 0 : -most, high: most, step };
}

// ---- changes
function addIntervention(feature, kindName = "steer", value = undefined) {
  const name = named(feature);
  const largest = state.picture.byIndex.get(feature)?.max ?? 0;
  const kind = kindOf(kindName);
  const entry = {
    kind: kindName,
    feature: name,
    label: label(feature) ?? null,
    value: value ?? startOf(kind, largest),
    units: "raw",
    at: asked.picture ? "image" : "all",
  };
  const there = interventions.find((other) => other.entry.feature === name && other.entry.kind === kindName);
  if (there) {
    there.isOn = true;
    if (value !== undefined) there.entry.value = value;
  } else {
    interventions.push({ entry, isOn: true, largest });
  }
  drawInterventions();
  changed();
}

// Something that texts depend on is another: the command too, and what runs is out of date.
function changed() {
  drawHint();
  drawCommandSoon();
  outdate();
  if (find("#follow").checked) runSoon();
}
const runSoon = debounced(() => { if (!find("#compare").hidden) compare(); }, 150);
find("#follow").addEventListener("change", ({ target }) => { if (target.checked) runSoon(); });

// ---- drawing
// One step at a time, until whoever sits here wants no more.
let wantsHints = true;
function drawHint() {
  const strongest = state.picture.features.find(({ rank }) => rank === 1);
  find("#hint").hidden = !wantsHints || strongest === undefined;
  if (find("#hint").hidden) return;
  const button = find("#hint .main");
  button.hidden = interventions.length > 0;
  if (interventions.length > 0) {
    find("#hint p").textContent =
      "Move the slider, and the model answers again; what differs is marked. Any other feature can be chosen in the list, or by its label.";
    return;
  }
  const { feature } = strongest;
  const name = element("b", {}, ...titleOf(feature));
  find("#hint p").replaceChildren(`The feature that stands out most in this ${asked.picture ? "picture" : "text"} is `, name, ". Take it away, and see what the model says then.");
  button.textContent = `Subtract ${label(feature) ?? `feature ${named(feature)}`}`;
  button.onclick = () => {
    addIntervention(feature);
    const { top, bottom } = find("#steering").getBoundingClientRect();
    if (top < 0 || bottom > innerHeight) find("#steering").scrollIntoView();
    find("#interventions input[type=range]").focus({ preventScroll: true });
  };
}
find("#end-hints").addEventListener("click", () => {
  wantsHints = false;
  drawHint();
});

function drawInterventions() {
  for (const one of interventions) one.largest = largestOf(one.entry) || one.largest;
  find("#interventions").replaceChildren(...interventions.map(drawnIntervention));
  find("#no-interventions").hidden = interventions.length > 0;
}

function options(names, chosen) {
  return names.map((name) => element("option", { value: name, textContent: name, selected: name === chosen }));
}

function drawnIntervention(one) {
  const { entry } = one;
  const { number } = kindOf(entry.kind);
  const item = element("li", { className: one.isOn ? "" : "off" });
  // Controls of several rows are alike: each says whose it is.
  const titled = (control, name) => {
    control.setAttribute("aria-label", `${name} of ${subject(entry)}`);
    return control;
  };
  const on = titled(element("input", { type: "checkbox", checked: one.isOn, title: "On or off", onchange: () => {
    one.isOn = on.checked;
    item.classList.toggle("off", !one.isOn);
    changed();
  } }), "on");
  item.append(element("div", { className: "row" }, on, titled(kindChoice(one), "kind"), nameOf(entry), titled(removal(one), "remove")));
  if (number !== "none") item.append(element("div", { className: "row" }, ...numberOf(one, titled)));
  const last = element("div", { className: "row small" }, element("label", {}, "at ", titled(placesOf(entry), "positions")));
  if (number === "units") last.append(element("label", {}, "units ", titled(unitsOf(one), "units")));
  if (entry.when) last.append(element("span", { className: "note", textContent: `where ${entry.when.feature} is above ${entry.when.above}` }));
  item.append(last);
  return item;
}

function kindChoice(one) {
  const { entry } = one;
  const target = entry.feature === undefined ? "vectors" : "features";
  const kinds = asked.model.kinds.filter(({ targets }) => targets === "both" || targets === target);
  const select = element("select", { title: kindOf(entry.kind).help }, ...options(kinds.map(({ name }) => name), entry.kind));
  select.addEventListener("change", () => {
    entry.kind = select.value;
    entry.value = startOf(kindOf(entry.kind), inUnits(entry.units, one.largest));
    drawInterventions();
    find("#interventions").children[interventions.indexOf(one)].querySelector("select").focus();
    changed();
  });
  return select;
}

// The feature, which is shown when it is clicked; a vector has nothing to show.
function nameOf({ feature, label: text }) {
  if (feature === undefined) return element("span", { className: "name" }, labelElement(text));
  const show = () => pickAnywhere(feature);
  return element("button", { type: "button", className: "plain name", title: "Show this feature", onclick: show }, labelElement(text), ` ${feature}`);
}

function removal(one) {
  const remove = () => {
    const place = interventions.indexOf(one);
    interventions.splice(place, 1);
    drawInterventions();
    const next = find("#interventions").children[Math.min(place, interventions.length - 1)];
    (next?.querySelector("input") ?? find("#list")).focus();
    changed();
  };
  return element("button", { type: "button", className: "plain remove", textContent: "×", title: "Remove", onclick: remove });
}

function placesOf(entry) {
  const input = element("input", { className: "places", value: entry.at ?? "all", autocomplete: "off", spellcheck: false });
  input.setAttribute("list", "positions");
  input.addEventListener("change", () => {
    entry.at = input.value.trim() || "all";
    changed();
  });
  return input;
}

// What is usual is another order of magnitude, so that the number starts anew.
function unitsOf(one) {
  const { entry } = one;
  const title = "raw: multiples of the decoder row as it was trained; unit: of its direction at length 1; usual: of the feature’s usual activation";
  const known = entry.feature !== undefined && asked.model.saes.some(({ has_usual }) => has_usual) ? ["raw", "unit", "usual"] : ["raw", "unit"];
  const select = element("select", { title }, ...options(known, entry.units ?? "raw"));
  select.addEventListener("change", () => {
    const isOther = [entry.units, select.value].includes("usual");
    entry.units = select.value;
    if (isOther) {
      entry.value = startOf(kindOf(entry.kind), inUnits(entry.units, one.largest));
      drawInterventions();
      find("#interventions").children[interventions.indexOf(one)].querySelector("select[aria-label^=units]").focus();
    }
    changed();
  });
  return select;
}

// A slider and a number, each of which moves the other.
function numberOf(one, titled) {
  const { entry } = one;
  const { low, high, step } = reachOf(one);
  const slider = titled(element("input", { type: "range", min: low, max: high, step }), "strength");
  slider.value = entry.value; // once its range is known
  const number = titled(element("input", { type: "number", step: "any", value: entry.value, required: true }), "number");
  slider.addEventListener("input", () => {
    entry.value = Number(Number(slider.value).toPrecision(6));
    number.value = entry.value;
    changed();
  });
  number.addEventListener("input", () => {
    if (!number.checkValidity()) return;
    entry.value = Number(number.value);
    if (entry.value < Number(slider.min)) slider.min = entry.value;
    if (entry.value > Number(slider.max)) slider.max = entry.value;
    slider.value = entry.value;
    changed();
  });
  return [slider, number];
}
