// Requests to the server that gave this page, and its errors in words.

const KEY_NAME = "llava-sae-cpp key"; // in the tab's storage, which ends with it

class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// Those who wait for a key.
let waitingForKey = [];

function askForKey(wasRefused) {
  const form = find("#key");
  const isFirst = form.hidden;
  form.hidden = false;
  if (wasRefused) showError(new ApiError("the server refused this key: enter another"));
  if (isFirst || wasRefused) form.querySelector("input").focus();
  return new Promise((resolve) => waitingForKey.push(resolve));
}

find("#key").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = find("#key input");
  sessionStorage.setItem(KEY_NAME, input.value);
  input.value = "";
  find("#key").hidden = true;
  hideError();
  for (const resolve of waitingForKey.splice(0)) resolve();
});

// What the server answers to a request; where it asks for a key, the one of whoever sits here goes with it.
async function fetched(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY_NAME);
    const headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    const request = { headers, signal };
    if (body !== undefined) {
      headers["Content-Type"] = "application/json";
      Object.assign(request, { method: "POST", body: JSON.stringify(body) });
    }
    let response;
    try {
      response = await fetch(path, request);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("the server does not answer: see whether `llava-sae-cpp serve` still runs, then try again");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      // Another request may have brought a key meanwhile.
      if (sessionStorage.getItem(KEY_NAME) === key) {
        sessionStorage.removeItem(KEY_NAME);
        await askForKey(key !== null);
      } else if (!find("#key").hidden) {
        await askForKey(false);
      }
      continue;
    }
    throw await refusal(response);
  }
}

// The server's sentence.
async function refusal(response) {
  let sentence;
  try {
    const { error } = await response.json();
    sentence = typeof error === "string" ? error : error.message;
  } catch {
    sentence = `the server answered ${response.status} ${response.statusText}`.trim();
  }
  const seconds = response.headers.get("Retry-After");
  return new ApiError(seconds ? `${sentence} (try again in ${seconds} s)` : sentence, response.status);
}

const getJson = async (path, signal) => (await fetched(path, undefined, signal)).json();
const postJson = async (path, body, signal) => (await fetched(path, body, signal)).json();

// The events of a stream, as they come; an event of an error is thrown.
async function* events(path, body, signal) {
  const response = await fetched(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const frames = (rest + value.replaceAll("\r", "")).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const lines = frame.split("\n").filter((line) => line.startsWith("data:"));
      const text = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (text === "" || text === "[DONE]") continue;
      signal?.throwIfAborted(); // more may have come than was read
      const event = JSON.parse(text);
      if (event.error) throw new ApiError(event.error.message ?? event.error);
      yield event;
    }
  }
}

function showError(error) {
  if (error.name === "AbortError") return;
  console.warn(error);
  const sentence = error instanceof ApiError ? error.message : `this page failed: ${error.message}`;
  find("#alert p").textContent = sentence[0].toUpperCase() + sentence.slice(1);
  find("#alert").hidden = false;
}

function hideError() {
  find("#alert").hidden = true;
}
find("#alert button").addEventListener("click", hideError);

// What runs one at a time: a new run ends the one before it, and a button ends it too.
class Job {
  #abort = null;

  constructor(panel) {
    this.panel = panel;
    this.button = panel.querySelector(".stop");
    this.button.addEventListener("click", () => this.stop());
  }

  stop() {
    this.#abort?.abort();
  }

  // Whether a run with this signal is the last that was begun.
  isCurrent(signal) {
    return this.#abort?.signal === signal;
  }

  // Whether it came to its end.
  async run(work) {
    this.stop();
    const abort = new AbortController();
    this.#abort = abort;
    this.button.hidden = false;
    hideError();
    try {
      await work(abort.signal);
      return true;
    } catch (error) {
      if (this.#abort === abort) showError(error);
      return false;
    } finally {
      if (this.#abort === abort) {
        this.#abort = null;
        this.button.hidden = true;
      }
    }
  }
}

// `work`, once nothing has asked for it for a while.
function debounced(work, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), milliseconds);
  };
}

// How fast it went, of what the server says: our own timings, or those of chats.
function speed(timings, start) {
  const parts = [`${((performance.now() - start) / 1000).toFixed(2)} s`];
  const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  if (timings?.image_ms) parts.push(`picture ${milliseconds(timings.image_ms)}`);
  if (timings?.prompt_ms) parts.push(`prompt ${milliseconds(timings.prompt_ms)}`);
  const count = timings?.generated_tokens ?? timings?.predicted_n;
  const time = timings?.generate_ms ?? timings?.predicted_ms;
  if (count) parts.push(`${count} tokens${time ? ` in ${milliseconds(time)}` : ""}`);
  if (count && time) parts.push(`${Math.round((1000 * count) / time)} tokens/s`);
  return parts.join(" · ");
}
