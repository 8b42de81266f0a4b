// The chat page: a conversation over POST /v1/chat/completions with stream: true.
import { check, json, make, newKey, request } from "./api.js";

const $ = (id) => document.getElementById(id);
const talk = $("talk");
let messages = []; // as the API takes them, without the system message
let running = null; // AbortController
let model = "";

// ---- one answer as it comes -----------------------------------------------------------------

class Answer {
  constructor() {
    this.content = "";
    this.reasoning = "";
    this.isThinking = false;
    this.calls = [];
    this.thought = make("div", { className: "reasoning" });
    this.summary = make("summary", {}, "Thinking …");
    this.fold = make("details", { hidden: true }, this.summary, this.thought);
    this.text = make("div", { className: "text" });
    this.tools = make("div");
    this.note = make("p", { className: "note" });
    this.box = make("article", { className: "said writing" }, this.fold, this.text, this.tools, this.note);
    this.unseen = { content: "", reasoning: "" };
    this.frame = 0;
    talk.append(this.box);
  }

  // Once a frame: laying out a long answer for every token would keep the page from its keys.
  show() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const stay = atEnd();
    this.thought.append(this.unseen.reasoning);
    this.text.append(this.unseen.content);
    this.text.normalize();
    this.unseen = { content: "", reasoning: "" };
    for (const call of this.calls.filter(Boolean)) {
      call.title.textContent = call.name;
      call.code.textContent = pretty(call.arguments);
    }
    if (stay) toEnd();
  }

  take(delta) {
    const reasoning = delta.reasoning_content ?? delta.reasoning;
    if (reasoning) {
      this.reasoning += reasoning;
      this.isThinking = true;
      this.fold.hidden = false;
      this.unseen.reasoning += reasoning;
    }
    if (delta.content) {
      this.content += delta.content;
      this.unseen.content += delta.content;
    }
    if (this.isThinking && (delta.content || delta.tool_calls)) this.thoughtOver();
    for (const part of delta.tool_calls ?? []) this.takeCall(part);
    this.frame ||= requestAnimationFrame(() => this.show());
  }

  thoughtOver() {
    this.isThinking = false;
    const words = this.reasoning.trim().split(/\s+/).length;
    this.summary.textContent = `Thought (${words} ${words === 1 ? "word" : "words"})`;
  }

  takeCall(part) {
    let call = this.calls[part.index];
    if (!call) {
      call = { id: "", name: "", arguments: "" };
      call.title = make("b");
      call.code = make("pre", { className: "code" });
      call.result = make("input", { placeholder: "Result to give back with the next message" });
      call.result.setAttribute("aria-label", "Result of the tool call");
      this.calls[part.index] = call;
      this.tools.append(make("div", { className: "call" }, "Tool call ", call.title, call.code, call.result));
    }
    if (part.id) call.id = part.id;
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }

  end(note, failed) {
    this.show();
    this.box.classList.remove("writing");
    if (this.isThinking) this.thoughtOver();
    this.note.textContent = note;
    this.note.classList.toggle("failed", Boolean(failed));
    const calls = this.calls.filter(Boolean);
    if (!this.content && calls.length === 0 && !this.reasoning) return;
    const message = { role: "assistant", content: this.content };
    if (this.reasoning) message.reasoning_content = this.reasoning;
    if (calls.length)
      message.tool_calls = calls.map((c) => ({
        id: c.id, type: "function", function: { name: c.name, arguments: c.arguments },
      }));
    messages.push(message);
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // not complete yet
  }
}

// ---- the exchange ---------------------------------------------------------------------------

// Calls on_event with the parsed data of every server-sent event until [DONE].
async function readEvents(response, onEvent) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      onEvent(JSON.parse(data));
    }
  }
}

const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));

function body() {
  const system = $("system").value.trim(), tools = $("tools").value.trim();
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    temperature: number("temperature"),
    max_tokens: number("max-tokens"),
    seed: number("seed"),
    tools: tools ? JSON.parse(tools) : undefined,
  };
}

const atEnd = () => talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
const toEnd = () => { talk.scrollTop = talk.scrollHeight; };

async function exchange() {
  const answer = new Answer();
  const begun = performance.now();
  let first = 0, finish = "", usage = null, tokens = 0, isDegraded = false;
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  toEnd();
  try {
    const response = await check(await request("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body()),
      signal: running.signal,
    }));
    await readEvents(response, (event) => {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      isDegraded ||= event.degraded === true;
      const choice = event.choices?.[0];
      if (!choice) return;
      const d = choice.delta;
      if (d.content || d.reasoning_content || d.tool_calls) {
        first ||= performance.now();
        tokens++;
      }
      answer.take(d);
      finish = choice.finish_reason ?? finish;
    });
    answer.end((finish === "length" ? "Cut off: the token limit was reached. " : "") +
      (isDegraded ? "Some experts could not be asked for this answer." : ""));
  } catch (error) {
    if (error.name === "AbortError") answer.end("Stopped.");
    else answer.end(error.message, true);
    if (error.status === 401 || error.status === 403) newKey().then(loadModel);
  }
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  $("message").focus();
  if (!first) return;
  const seconds = (performance.now() - first) / 1000, n = usage?.completion_tokens ?? tokens;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  $("figures").textContent =
    `${n} tokens, first after ${((first - begun) / 1000).toFixed(2)} s, ` +
    `${(n / Math.max(seconds, 0.001)).toFixed(1)} tokens/s` +
    (usage ? `; prompt ${usage.prompt_tokens}` + (cached ? ` (${cached} cached)` : "") : "");
  if (atEnd()) toEnd();
}

// A model that called tools is waiting for what they gave.
function giveResults() {
  const last = messages.at(-1);
  if (last?.role !== "assistant" || !last.tool_calls) return;
  const fields = [...talk.querySelectorAll(".call input:not(:disabled)")];
  last.tool_calls.forEach((call, i) => {
    const field = fields[i];
    messages.push({ role: "tool", tool_call_id: call.id, content: field?.value || "(no result)" });
    if (field) field.disabled = true;
  });
}

function send() {
  const text = $("message").value.trim();
  const waits = messages.at(-1)?.tool_calls;
  if (running || (!text && !waits)) return;
  try {
    body();
  } catch {
    $("settings").open = true;
    $("tools").focus();
    $("figures").textContent = "Tools is not a JSON array.";
    return;
  }
  $("hello")?.remove();
  giveResults();
  if (text) {
    messages.push({ role: "user", content: text });
    talk.append(make("article", { className: "said user" }, make("div", { className: "text" }, text)));
  }
  $("message").value = "";
  grow();
  exchange();
}

function grow() {
  const field = $("message");
  field.style.height = "auto";
  field.style.height = field.scrollHeight + 2 + "px";
}

async function loadModel() {
  try {
    model = (await json("/v1/models")).data[0].id;
    $("message").placeholder = "Message " + model;
  } catch (error) {
    if (error.status) newKey().then(loadModel);
  }
}

export function startChat() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("message").addEventListener("input", grow);
  $("message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  $("clear").addEventListener("click", () => {
    running?.abort();
    messages = [];
    talk.replaceChildren();
    $("message").focus();
  });
  loadModel();
}
