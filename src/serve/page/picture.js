// The picture: where it comes from, and what the server says of its features.

// What the server reads; other pictures that this browser can show are made PNGs of.
const READABLE = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff"];
const N_LISTED = 100; // others have no rank
const WHOLE_SIDE = 240; // of a whole picture beside the part that is seen, in pixels

const asked = {
  picture: null, // { name, url }, a data URL
  model: null, // what `/api/model` says
  ids: new Map(), // by names that are not indices, which several SAEs give
};

// The number of a feature on this page, by what the server calls it.
function idOf(name) {
  if (typeof name === "number") return name;
  if (!asked.ids.has(name)) {
    asked.ids.set(name, asked.ids.size);
    data.names[asked.ids.get(name)] = name;
  }
  return asked.ids.get(name);
}

function remember(name, text) {
  const feature = idOf(name);
  if (text !== null && text !== undefined) data.labels[feature] = text;
  return feature;
}

const dataUrl = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.addEventListener("load", () => resolve(reader.result));
  reader.addEventListener("error", () => reject(reader.error));
  reader.readAsDataURL(blob);
});

async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

// A part of a picture, given in shares of it, as a PNG whose longest side is at most `side` pixels.
function cropped(image, [left, top, width, height], side) {
  const [w, h] = [width * image.naturalWidth, height * image.naturalHeight];
  const scale = Math.min(1, side / Math.max(w, h));
  const canvas = element("canvas", { width: Math.max(1, Math.round(w * scale)), height: Math.max(1, Math.round(h * scale)) });
  const drawing = canvas.getContext("2d");
  drawing.drawImage(image, -left * image.naturalWidth * scale, -top * image.naturalHeight * scale,
    image.naturalWidth * scale, image.naturalHeight * scale);
  return canvas.toDataURL();
}

// ---- choosing one
async function take(blob, name) {
  try {
    if (!READABLE.includes(blob.type)) {
      const image = await decoded(await dataUrl(blob));
      const url = cropped(image, [0, 0, 1, 1], Math.max(image.naturalWidth, image.naturalHeight));
      await usePicture({ name: `${name.replace(/\.[^.]*$/, "")}.png`, url });
    } else {
      await usePicture({ name, url: await dataUrl(blob) });
    }
  } catch (error) {
    const isUnreadable = error.name === "EncodingError";
    showError(isUnreadable ? new ApiError(`\`${name}\` is not a picture that this browser can read: choose a PNG or a JPEG`) : error);
  }
}

async function usePicture(picture) {
  asked.picture = picture;
  find("#picture-name").textContent = picture.name;
  for (const button of document.querySelectorAll("#examples button")) {
    button.setAttribute("aria-pressed", String(button.dataset.name === picture.name));
  }
  clearChat();
  clearOutputs();
  changed();
  await look();
}

for (const [button, input] of [["#choose-file", "#file"], ["#take-photo", "#camera"]]) {
  find(button).addEventListener("click", () => find(input).click());
  find(input).addEventListener("change", ({ target }) => {
    const [file] = target.files;
    if (file) take(file, file.name);
    target.value = "";
  });
}
find("#take-photo").hidden = !matchMedia("(pointer: coarse)").matches;

// Texts are dragged into fields as ever; what else is dropped must not make the browser leave this page.
const isForField = (event) => event.target.matches?.("input, textarea") && !event.dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (isForField(event)) return;
  event.preventDefault();
  document.body.classList.add("dragged");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragged");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dragged");
  if (isForField(event)) return;
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (!file) showError(new ApiError("what was dropped is not a file: save the picture, and drop its file"));
  else if (file.name.endsWith(".json")) loadSet(file);
  else take(file, file.name);
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  take(file, file.name);
});

async function drawExamples(examples) {
  const pictures = await Promise.all(examples.map(async ({ name, url }) => {
    const response = await fetched(url);
    return { name: url.split("/").at(-1), title: name, url: await dataUrl(await response.blob()) };
  }));
  find("#examples").replaceChildren(...pictures.map(({ name, title, url }) => {
    const button = element("button", { type: "button", title, onclick: () => usePicture({ name, url }).catch(showError) },
      element("img", { src: url, alt: title }));
    button.dataset.name = name;
    return button;
  }));
  return pictures[0];
}

// ---- what is sent
// A question as a conversation: the picture, then the text.
function conversation(text) {
  const content = asked.picture
    ? [{ type: "image_url", image_url: { url: asked.picture.url } }, { type: "text", text }]
    : text;
  return [{ role: "user", content }];
}

// ---- its features
const looking = { abort: null };

async function look() {
  looking.abort?.abort();
  const abort = new AbortController();
  looking.abort = abort;
  const { picture } = asked;
  find("#features").setAttribute("aria-busy", "true");
  find("#ranking").textContent = "Looking for features …";
  try {
    const body = { messages: conversation(find("#question").value), sae: { top: N_LISTED, per_token: true } };
    const answer = await postJson("/api/features", body, abort.signal);
    const image = picture && answer.views.length > 0 ? await decoded(picture.url) : null;
    if (looking.abort !== abort) return;
    for (const id of ["where", "position"]) find(`#${id}`).hidden = false;
    explore(explored(answer, image));
    find("#ranking").textContent = answer.ranked_by === "lift"
      ? "Ranked by lift: how far above their usual peak on pictures they are."
      : "Ranked by their largest activation.";
    drawHint();
    drawInterventions();
    drawSweepForm();
  } catch (error) {
    if (looking.abort === abort) find("#ranking").textContent = "";
    showError(error);
  } finally {
    if (looking.abort === abort) find("#features").removeAttribute("aria-busy");
  }
}

// The server's answer as what can be explored (`stage.js`).
function explored(answer, image) {
  for (const [name, text] of Object.entries(answer.labels ?? {})) remember(/^\d+$/.test(name) ? Number(name) : name, text);
  const rows = answer.activations.map((row) => row.map(([name, value]) => [idOf(name), value]).sort((a, b) => b[1] - a[1]));
  const features = answer.features.map(({ rank, feature, label: text, score, max, n_tokens, lift, argmax_position }) => ({
    feature: remember(feature, text), score, lift, max, nTokens: n_tokens, argmax: argmax_position, rank, isElsewhere: false,
  }));
  const byIndex = new Map(features.map((entry) => [entry.feature, entry]));
  // Those that are not listed: what they do on the image, or on the text if that is all.
  const others = new Map();
  const add = (position, isElsewhere) => {
    for (const [feature, value] of rows[position]) {
      const entry = others.get(feature) ?? { feature, score: 0, lift: null, max: 0, nTokens: 0, argmax: 0, rank: null, isElsewhere };
      if (byIndex.has(feature) || entry.isElsewhere !== isElsewhere) continue;
      others.set(feature, entry);
      entry.nTokens += 1;
      if (value > entry.max) Object.assign(entry, { max: value, score: value, argmax: position });
    }
  };
  const isPooled = ({ kind }) => (answer.n_image_tokens > 0 ? kind === "image" : true);
  answer.tokens.forEach((token, position) => { if (isPooled(token)) add(position, false); });
  answer.tokens.forEach((token, position) => { if (!isPooled(token)) add(position, true); });
  const rest = [...others.values()].sort((a, b) => b.max - a.max);
  for (const entry of rest) byIndex.set(entry.feature, entry);
  data.positions = answer.n_image_tokens > 0 ? `the image’s ${answer.n_image_tokens} rows` : "the text’s tokens";
  const views = image === null ? [] : answer.views.map(({ place, grid, first_position, stride }) => ({
    image: cropped(image, place, 448), whole: wholeOf(image, place), grid, first: first_position, stride,
  }));
  const tokens = answer.tokens.map(({ kind, text }) => ({ kind, text: text?.replaceAll("\n", "↵") }));
  return { views, tokens, activations: rows, features: [...features, ...rest], byIndex, hasLift: answer.ranked_by === "lift" };
}

// The whole picture and the frame of what is seen of it; none where that is all.
function wholeOf(image, [left, top, width, height]) {
  if (left <= 0 && top <= 0 && left + width >= 1 && top + height >= 1) return null;
  return { image: cropped(image, [0, 0, 1, 1], WHOLE_SIDE), frame: [left, top, width, height] };
}
