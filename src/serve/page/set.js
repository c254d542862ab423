// The set of interventions as a file, and as the command line that does the same.

const SET_NAME = "interventions.json";

// Those that are on, as the server understands them: with indices, labels and units.
async function resolved(signal) {
  const steering = active();
  if (steering.length === 0) return { interventions: [], arguments: [] };
  return postJson("/api/interventions", { steering }, signal);
}

find("#save-set").addEventListener("click", async () => {
  try {
    const { interventions: entries } = await resolved();
    if (entries.length === 0) throw new ApiError("there is nothing to save: no intervention is on");
    const text = `${JSON.stringify(entries, null, 2)}\n`;
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    element("a", { href: url, download: SET_NAME }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  } catch (error) {
    showError(error);
  }
});

// A saved set takes the place of what is there, if the server has nothing against it.
async function loadSet(file) {
  try {
    let set;
    try {
      set = JSON.parse(await file.text());
    } catch {
      throw new ApiError(`\`${file.name}\` is not JSON: choose a file that \`Save\` has written`);
    }
    const { interventions: entries } = await postJson("/api/interventions", { steering: set });
    hideError();
    for (const { feature, label: text } of entries) if (feature !== undefined) remember(feature, text);
    interventions = entries.map((entry) => ({ entry, isOn: true, largest: 0 }));
    drawInterventions();
    changed();
  } catch (error) {
    showError(error);
  }
}

find("#load-set").addEventListener("click", () => find("#set-file").click());
find("#set-file").addEventListener("change", ({ target }) => {
  if (target.files[0]) loadSet(target.files[0]);
  target.value = "";
});

// ---- the command line
// As a POSIX shell takes it.
const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

let commandAbort = null;
async function drawCommand() {
  commandAbort?.abort();
  const abort = new AbortController();
  commandAbort = abort;
  let answer;
  try {
    answer = await resolved(abort.signal);
  } catch {
    return; // the run that follows says what is wrong
  }
  if (commandAbort !== abort || !asked.model) return;
  const { picture, model } = asked;
  const words = ["llava-sae-cpp"];
  if (model.command) words.push(model.command); // as it was given
  const given = answer.arguments ?? ["--interventions", SET_NAME];
  words.push(...given.map(quoted));
  if (given.length > 0) words.push("--compare");
  const question = find("#question").value;
  words.push("-p", quoted(question), ...samplingArguments());
  if (picture) words.push(quoted(picture.name));
  find("#command code").textContent = words.join(" ");
  const notes = [];
  if (answer.arguments === null) notes.push(`Only a file can say this: Save writes ${SET_NAME}. `);
  if (picture) {
    const link = element("a", { href: picture.url, download: picture.name, textContent: picture.name });
    notes.push(link, " is the picture’s file.");
  }
  find("#command .note").replaceChildren(...notes);
}
const drawCommandSoon = debounced(drawCommand, 250);

find("#copy-command").addEventListener("click", async () => {
  const button = find("#copy-command");
  const code = find("#command code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } catch {
    // Browsers give the clipboard to secure pages only: what is chosen can be copied by the keyboard.
    getSelection().selectAllChildren(code);
    button.textContent = "Press Ctrl+C";
  }
});
