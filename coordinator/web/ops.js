// The operations page: /cluster, /metrics, /admin/heat and /admin/events, asked for again and again.
import { json, make, newKey, request, check, text } from "./api.js";
import { drawLines, drawMap, heatColour, hue, short } from "./plot.js";

const $ = (id) => document.getElementById(id);
const EVERY_MS = 1000, KEPT = 180, HEAT_EVERY = 4;
let isShown = false, isRunning = false, turn = 0;

export function showOps(on) {
  isShown = on;
  if (on && !isRunning) run();
}

// ---- /metrics -------------------------------------------------------------------------------

// A map from "name{labels}" to its value.
function parseMetrics(body) {
  const all = new Map();
  for (const line of body.split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const at = line.lastIndexOf(" ");
    all.set(line.slice(0, at), Number(line.slice(at + 1)));
  }
  return all;
}

const get = (m, name) => m?.get("polymath_" + name) ?? 0;

// The q-quantile of what was recorded between two readings; NaN if nothing was.
function quantile(now, before, name, q) {
  const prefix = `polymath_${name}_bucket{le="`;
  const buckets = [];
  for (const [key, value] of now)
    if (key.startsWith(prefix))
      buckets.push([Number(key.slice(prefix.length, -2).replace("+Inf", "Infinity")), value - (before?.get(key) ?? 0)]);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total <= 0) return NaN;
  const wanted = q * total;
  let low = 0, below = 0;
  for (const [high, n] of buckets) {
    if (n >= wanted && n > below)
      return high === Infinity ? low : low + ((high - low) * (wanted - below)) / (n - below);
    if (high !== Infinity) low = high;
    below = n;
  }
  return low;
}

const history = []; // {at, metrics, cluster}

// The reading about `seconds` ago.
function earlier(seconds) {
  const at = history.at(-1).at - seconds * 1000;
  return history.findLast((h) => h.at <= at) ?? history[0];
}

function perSecond(now, before, name) {
  const seconds = (now.at - before.at) / 1000;
  const grown = get(now.metrics, name) - get(before.metrics, name);
  return seconds > 0 && grown >= 0 ? grown / seconds : NaN;
}

// ---- tiles and plots ------------------------------------------------------------------------

function bytes(n) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= 1000 && i < 4) {
    n /= 1000;
    i++;
  }
  return `${n >= 100 || i === 0 ? n.toFixed(0) : n.toFixed(1)} ${units[i]}`;
}

function tile(name, value, more = "") {
  return make("div", { className: "tile" }, make("span", { className: "quiet" }, name),
    make("b", {}, value), make("span", { className: "quiet" }, more));
}

function drawTiles(now) {
  const c = now.cluster, m = now.metrics, before = earlier(5);
  const rate = perSecond(now, before, "generated_tokens_total");
  const fed = get(m, "prompt_tokens_total"), cached = get(m, "prefix_cached_tokens_total");
  let pages = 0, used = 0;
  for (const [key, value] of m) {
    if (key.startsWith("polymath_kv_pages{")) pages += value;
    if (key.startsWith("polymath_kv_pages_used{")) used += value;
  }
  $("tiles").replaceChildren(
    tile("Model", c.model.name, `${c.model.layers} layers × ${c.model.experts} experts, ${c.model.format}`),
    tile("Tokens/s", Number.isFinite(rate) ? short(rate) : "–", `${get(m, "generated_tokens_total").toLocaleString()} so far`),
    tile("Requests", `${c.requests.running} + ${c.requests.queued}`, "running + queued"),
    tile("Experts", `${Math.floor(c.coverage.share * 100)} %`, `${c.coverage.live} of ${c.coverage.experts} live, ${c.coverage.copies} copies`),
    tile("KV cache", pages ? `${Math.round((100 * used) / pages)} %` : "–", `${used} of ${pages} pages; ${fed ? Math.round((100 * cached) / fed) : 0} % of prompts were there`),
    tile("Coordinator", bytes(m.get("process_resident_memory_bytes") ?? 0), "resident memory"));
}

function drawPlots() {
  const span = Math.round((history.at(-1).at - history[0].at) / 1000);
  const windowed = (f) => history.map((h, i) => f(h, history[Math.max(0, i - 5)]));
  drawLines($("plot-tokens"), [
    { name: "generated", values: windowed((n, b) => perSecond(n, b, "generated_tokens_total")) },
    { name: "prompt", values: windowed((n, b) => perSecond(n, b, "prompt_tokens_total")) },
  ], span);
  const of = (name, q, unit) => windowed((n, b) => quantile(n.metrics, b.metrics, name, q) * unit);
  drawLines($("plot-first"), [
    { name: "half", values: of("first_token_seconds", 0.5, 1) },
    { name: "99 %", values: of("first_token_seconds", 0.99, 1) },
  ], span);
  drawLines($("plot-gap"), [
    { name: "half", values: of("inter_token_seconds", 0.5, 1000) },
    { name: "99 %", values: of("inter_token_seconds", 0.99, 1000) },
  ], span);
  drawLines($("plot-requests"), [
    { name: "running", values: history.map((h) => h.cluster.requests.running) },
    { name: "queued", values: history.map((h) => h.cluster.requests.queued) },
  ], span);
}

// ---- nodes ----------------------------------------------------------------------------------

const stateClass = { ready: "good", joining: "warn", loading: "warn", draining: "warn", suspect: "warn", quarantined: "bad", gone: "bad" };

function rows(pairs) {
  const list = make("dl");
  for (const [name, value] of pairs)
    if (value !== undefined) list.append(make("dt", {}, name), make("dd", {}, String(value)));
  return list;
}

function callFigures(now, name) {
  const before = earlier(5), label = (metric) => `${metric}{node="${name}"}`;
  const calls = perSecond(now, before, label("node_calls_total"));
  const seconds = perSecond(now, before, label("node_call_seconds_total"));
  const compute = perSecond(now, before, label("node_compute_seconds_total"));
  const traffic = perSecond(now, before, label("node_sent_bytes_total")) +
    perSecond(now, before, label("node_received_bytes_total"));
  return [
    ["calls/s", calls ? short(calls) : "0"],
    ["a call", calls ? `${((1000 * seconds) / calls).toFixed(2)} ms, ${((1000 * compute) / calls).toFixed(2)} at work` : "–"],
    ["traffic", calls ? bytes(traffic) + "/s" : "–"],
    ["failovers", get(now.metrics, label("node_failovers_total"))],
  ];
}

function nodeCard(now, n) {
  const isExpert = n.role === "expert";
  const pill = make("span", { className: "pill " + (stateClass[n.state] ?? "") }, n.draining && n.state === "ready" ? "asked to drain" : n.state);
  const card = make("div", { className: "node" + (n.state === "gone" ? " gone" : "") },
    make("div", { className: "top" }, make("b", { title: n.name }, n.name), pill),
    rows([
      ["host", `${n.host} · pid ${n.pid}`],
      ...(isExpert && n.state !== "gone"
        ? [["experts", `${n.experts_live} live of ${n.experts_wanted}` + (n.experts_loading ? `, ${n.experts_loading} loading` : "")],
           ["memory", `${bytes(n.held_bytes)} of ${bytes(n.memory_bytes)}`], ...callFigures(now, n.name)]
        : []),
      ...(n.role === "context" && n.state !== "gone" ? [["lends", n.lent_to ? `${n.kv_pages_total} KV pages to ${n.lent_to}` : `${n.kv_pages_total} KV pages, to nobody yet`]] : []),
      ...(n.role === "attention" && n.kv_pages_total ? [["KV pages", `${n.kv_pages_total - n.kv_pages_free} of ${n.kv_pages_total}`], ["batch", `${n.max_rows} rows, ${n.max_seqs} sequences`]] : []),
      ["heard of", n.heartbeat_age_ms < 10000 ? `${n.heartbeat_age_ms} ms ago` : `${Math.round(n.heartbeat_age_ms / 1000)} s ago`],
    ]));
  if (isExpert && n.memory_bytes && n.state !== "gone") {
    const meter = make("meter", { min: 0, max: 1, value: n.held_bytes / n.memory_bytes });
    meter.setAttribute("aria-label", `memory of ${n.name}`);
    card.append(meter);
  }
  if (isExpert && n.state !== "gone") {
    const button = make("button", { className: "danger", disabled: n.draining, onclick: () => drain(n.name) }, "Drain");
    button.setAttribute("aria-label", `Drain ${n.name}`);
    button.dataset.node = n.name;
    card.append(make("div", { className: "bottom" }, button));
  }
  return card;
}

function drawNodes(now) {
  const focused = document.activeElement?.dataset?.node;
  const order = { expert: 0, attention: 1, context: 2 };
  const nodes = [...now.cluster.nodes].sort((a, b) =>
    (a.state === "gone") - (b.state === "gone") || order[a.role] - order[b.role] ||
    a.name.localeCompare(b.name, undefined, { numeric: true }));
  $("nodes").replaceChildren(...nodes.map((n) => nodeCard(now, n)));
  if (nodes.length === 0) $("nodes").append(make("p", { className: "quiet" }, "No node has joined yet."));
  if (focused) $("nodes").querySelector(`[data-node="${CSS.escape(focused)}"]`)?.focus();
}

function drain(name) {
  const dialog = $("confirm");
  $("confirm-text").textContent =
    `Drain ${name}? It hands over the experts that it holds, then ends. Requests that run do not notice.`;
  dialog.returnValue = "no";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    try {
      await check(await request("/admin/drain?node=" + encodeURIComponent(name), { method: "POST" }));
    } catch (error) {
      addEvent({ time_ms: Date.now(), kind: "drain refused", level: "bad", text: error.message });
    }
  };
  dialog.showModal();
}

// ---- the map of experts ---------------------------------------------------------------------

let heat = null;
const mode = () => document.querySelector('input[name="heat"]:checked').value;
const pair = (line, e) => parseInt(line.substr(2 * e, 2), 16);

const values = {
  load: (l, e) => pair(heat.load[l], e),
  copies: (l, e) => Number(heat.copies[l][e]),
  homes: (l, e) => pair(heat.homes[l], e),
};

function colourOf(l, e) {
  const v = values[mode()](l, e);
  if (mode() === "load") return heatColour(v / 255);
  if (mode() === "copies") return v === 0 ? [200, 30, 30] : heatColour(0.15 + (0.75 * (v - 1)) / 3);
  return v === 255 ? [200, 30, 30] : hue(v, heat.nodes.length);
}

function legend() {
  const chip = (rgb, name) => {
    const square = make("i");
    square.style.backgroundColor = `rgb(${rgb.join(" ")})`;
    return make("span", {}, square, name);
  };
  if (mode() === "load") return [chip(heatColour(0), "never chosen"), chip(heatColour(1), "the layer’s favourite")];
  if (mode() === "copies")
    return [0, 1, 2, 3, 4].map((n) => chip(n ? heatColour(0.15 + (0.75 * (n - 1)) / 3) : [200, 30, 30], n === 1 ? "1 copy" : `${n} copies`));
  return heat.nodes.map((name, i) => name && chip(hue(i, heat.nodes.length), name)).filter(Boolean).concat(chip([200, 30, 30], "nobody"));
}

function describe(l, e) {
  const home = values.homes(l, e), copies = values.copies(l, e);
  return `Layer ${l}, expert ${e}: ${Math.round((100 * values.load(l, e)) / 255)} % of the layer’s most chosen; ` +
    (copies ? `${copies} ${copies === 1 ? "copy" : "copies"}, first on ${heat.nodes[home] ?? "?"}.` : "nobody holds it.");
}

function drawHeat() {
  if (!heat) return;
  drawMap($("heat"), heat.layers, heat.experts, colourOf);
  $("heat").setAttribute("aria-label", `${heat.layers} layers (down) by ${heat.experts} experts (across): ${mode()}`);
  $("heat-legend").replaceChildren(...legend());
  if (!$("heat-text").textContent) $("heat-text").textContent = "Layers go down, experts across. Point at one, or use the arrow keys.";
}

const cursor = { l: 0, e: 0 };
$("heat").addEventListener("pointermove", (event) => {
  if (!heat) return;
  const box = event.target.getBoundingClientRect();
  cursor.e = Math.min(heat.experts - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * heat.experts)));
  cursor.l = Math.min(heat.layers - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * heat.layers)));
  $("heat-text").textContent = describe(cursor.l, cursor.e);
});
$("heat").addEventListener("keydown", (event) => {
  const [dl, de] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
  if (!heat || (!dl && !de)) return;
  event.preventDefault();
  cursor.l = Math.min(heat.layers - 1, Math.max(0, cursor.l + dl));
  cursor.e = Math.min(heat.experts - 1, Math.max(0, cursor.e + de));
  $("heat-text").textContent = describe(cursor.l, cursor.e);
});
for (const input of document.querySelectorAll('input[name="heat"]')) input.addEventListener("change", drawHeat);

// ---- events ---------------------------------------------------------------------------------

let lastEvent = 0, eventsOf = "";

function addEvent(event) {
  const list = $("events");
  const time = make("time", {}, new Date(event.time_ms).toLocaleTimeString([], { hour12: false }));
  list.prepend(make("li", {}, time,
    make("span", { className: "what" }, make("span", { className: event.level }, event.kind), " " + event.text)));
  while (list.children.length > 200) list.lastChild.remove();
}

async function readEvents() {
  const answer = await json(`/admin/events?after=${lastEvent}`);
  if (answer.coordinator !== eventsOf) {
    eventsOf = answer.coordinator;
    if (lastEvent > 0) {
      lastEvent = 0; // another coordinator: from its beginning
      return;
    }
  }
  lastEvent = answer.last;
  for (const event of answer.events) addEvent(event);
  if ($("events").children.length === 0)
    $("events").append(make("li", {}, make("time", {}, "–"), make("span", { className: "quiet" }, "Nothing yet.")));
}

// ---- the clock ------------------------------------------------------------------------------

async function look() {
  const [cluster, metrics] = await Promise.all([json("/cluster"), text("/metrics")]);
  const now = { at: performance.now(), cluster, metrics: parseMetrics(metrics) };
  const before = history.at(-1);
  if (before && get(now.metrics, "steps_total") < get(before.metrics, "steps_total")) history.length = 0;
  history.push(now);
  if (history.length > KEPT) history.shift();
  drawTiles(now);
  drawPlots();
  drawNodes(now);
  await readEvents();
  if (turn++ % HEAT_EVERY === 0) {
    heat = await json("/admin/heat");
    drawHeat();
  }
}

async function run() {
  isRunning = true;
  while (isShown) {
    try {
      if (!document.hidden) await look();
    } catch (error) {
      if (error.status === 401 || error.status === 403) await newKey();
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
  isRunning = false;
}

addEventListener("resize", () => isShown && history.length && drawPlots());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (history.length) drawPlots();
  drawHeat();
});
