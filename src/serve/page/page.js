// What stands when the page opens, and its tabs.

const tabs = [...document.querySelectorAll("[role=tab]")];

function openTab(name) {
  for (const tab of tabs) {
    const isOpen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(isOpen));
    tab.tabIndex = isOpen ? 0 : -1;
    find(`#${tab.getAttribute("aria-controls")}`).hidden = !isOpen;
  }
}
for (const tab of tabs) tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
find("#tabs").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  openTab(next.getAttribute("aria-controls"));
  next.focus();
});
// What has changed meanwhile.
find("#tab-compare").addEventListener("click", () => { if (find("#follow").checked) runSoon(); });

// In the page, lest the browser asks the server for one.
const ICON = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="4" fill="#1f5fbf"/>'
  + '<path d="M3 11h2V8H3zm4 0h2V4H7zm4 0h2V6h-2z" fill="#fff"/></svg>';
document.head.append(element("link", { rel: "icon", href: `data:image/svg+xml,${encodeURIComponent(ICON)}` }));

find("#list").setAttribute("aria-label", "Features. Arrow keys choose one, Enter subtracts it.");

async function start() {
  // Until there is something to show in them.
  for (const id of ["where", "position", "card"]) find(`#${id}`).hidden = true;
  try {
    asked.model = await getJson("/api/model");
    data.neuronpedia = asked.model.neuronpedia;
    const { model, sae_name: saeName, saes, has_images: hasImages, examples, version } = asked.model;
    const described = saes.map(({ id, hook, d_sae: width }) => `SAE ${saes.length > 1 ? id : saeName}, ${hook}, ${width} features`);
    find("#about").textContent = [`Model ${model}`, ...described, `version ${version}`].join(" · ");
    document.title = `${model}: features and steering`;
    find("#choice").hidden = !hasImages;
    const first = hasImages ? await drawExamples(examples) : undefined;
    drawInterventions();
    if (asked.picture) return; // someone was faster
    if (!hasImages) {
      find("#question").value = "Who are you?";
      changed();
      await look();
    } else if (first) {
      await usePicture(first);
    } else {
      find("#ranking").textContent = "Choose a picture, and its features are listed here.";
    }
    followAddress();
  } catch (error) {
    showError(error);
  }
}
start();
