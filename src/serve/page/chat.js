// A conversation about the picture, under the interventions.

const N_SEEN = 5; // features that are named under an answer
const chatJob = new Job(find("#chat"));
let turns = []; // { role, content }

function clearChat() {
  chatJob.stop();
  turns = [];
  find("#log").replaceChildren();
  find("#chat-status").textContent = "";
}

function showEnd() {
  find("#log").scrollTop = find("#log").scrollHeight;
}

function addTurn(who, text = "") {
  const shown = element("p", { className: "output", textContent: text });
  const item = element("li", { className: who === "You" ? "user" : "" }, element("h3", { textContent: who }), shown);
  find("#log").append(item);
  showEnd();
  return item;
}

// The picture stands before the first message.
function messagesOfChat() {
  return turns.map(({ role, content }, i) => (i === 0 ? conversation(content)[0] : { role, content }));
}

function drawnSeen(features) {
  const buttons = features.slice(0, N_SEEN).map(({ feature, label: text, max }) => {
    remember(feature, text);
    return element("button", { type: "button", onclick: () => pickAnywhere(feature) }, labelElement(text), ` ${number(max)}`);
  });
  return element("div", { className: "chips" }, ...buttons);
}

async function say(text) {
  turns.push({ role: "user", content: text });
  addTurn("You", text);
  const item = addTurn(active().length > 0 ? "Model, steered" : "Model");
  const shown = item.querySelector(".output");
  item.setAttribute("aria-busy", "true");
  const start = performance.now();
  find("#chat-status").textContent = "Running …";
  let [answer, stop, timings] = ["", null, null];
  const isDone = await chatJob.run(async (signal) => {
    const request = { messages: messagesOfChat(), stream: true, steering: active(), sae: { top: N_SEEN }, ...sampling() };
    for await (const event of events("/v1/chat/completions", request, signal)) {
      if (event.sae) item.append(drawnSeen(event.sae.features));
      const [choice] = event.choices ?? [];
      if (choice?.delta?.content) {
        answer += choice.delta.content;
        shown.textContent = answer;
      }
      stop = choice?.finish_reason ?? stop;
      timings = event.timings ?? timings;
      showEnd();
    }
  });
  item.removeAttribute("aria-busy");
  if (!turns.length) return; // begun anew meanwhile
  if (!isDone && answer === "") {
    // As if it had not been said: it can be sent again.
    turns.pop();
    item.previousElementSibling.remove();
    item.remove();
    find("#message").value = text;
    find("#chat-status").textContent = "";
    return;
  }
  turns.push({ role: "assistant", content: answer });
  const cut = stop === "length" ? `Cut off at ${sampling().max_tokens} tokens` : isDone ? "" : "Stopped";
  find("#chat-status").textContent = [cut, speed(timings, start)].filter(Boolean).join(" · ");
}

find("#say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("#message").value.trim();
  if (text === "" || find("#log [aria-busy]")) return;
  find("#message").value = "";
  say(text);
});
// Enter sends, Shift and Enter make a line.
find("#message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  find("#say").requestSubmit();
});
find("#clear-chat").addEventListener("click", () => {
  clearChat();
  find("#message").focus();
});
