// Small plots on canvas: lines over time, and a map of layers by experts.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function surface(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

// The least of 1, 2, 5 times a power of ten that is not below x.
export function roundUp(x) {
  if (!(x > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(x));
  for (const m of [1, 2, 5, 10]) if (m * power >= x * 0.999) return m * power;
  return 10 * power;
}

export const short = (x) =>
  x >= 10000 ? (x / 1000).toFixed(0) + "k" : String(Number(x.toPrecision(x >= 100 ? 4 : 3)));

// series: [{name, values}], values oldest first, NaN for nothing known; all equally long.
export function drawLines(canvas, series, seconds) {
  const { context: c, width, height } = surface(canvas);
  const left = 44, right = 6, top = 18, bottom = 16;
  const high = roundUp(Math.max(...series.flatMap((s) => s.values.filter(Number.isFinite)), 0));
  const y = (v) => top + (height - top - bottom) * (1 - v / high);
  c.font = "11px system-ui, sans-serif";
  c.fillStyle = colour("--quiet");
  c.strokeStyle = colour("--line");
  c.textAlign = "right";
  for (const share of [0, 0.5, 1]) {
    c.fillText(short(high * share), left - 4, y(high * share) + 4);
    c.beginPath();
    c.moveTo(left, y(high * share));
    c.lineTo(width - right, y(high * share));
    c.stroke();
  }
  c.fillText("now", width - right, height - 3);
  c.textAlign = "left";
  c.fillText(`−${seconds} s`, left, height - 3);
  let at = left;
  series.forEach((s, i) => {
    const tint = colour(`--series-${i + 1}`), n = s.values.length;
    c.strokeStyle = c.fillStyle = tint;
    c.lineWidth = 1.8;
    c.beginPath();
    let pen = false;
    s.values.forEach((v, k) => {
      if (!Number.isFinite(v)) {
        pen = false;
        return;
      }
      const x = left + ((width - left - right) * k) / Math.max(1, n - 1);
      if (pen) c.lineTo(x, y(v));
      else c.moveTo(x, y(v));
      pen = true;
    });
    c.stroke();
    c.lineWidth = 1;
    const last = s.values.findLast(Number.isFinite);
    const label = `${s.name} ${last === undefined ? "–" : short(last)}`;
    c.fillRect(at, 4, 8, 8);
    c.fillText(label, at + 11, 12);
    at += c.measureText(label).width + 24;
  });
  canvas.setAttribute("aria-label",
    series.map((s) => `${s.name}: ${short(s.values.findLast(Number.isFinite) ?? 0)}`).join(", "));
}

// From paper through orange to deep red; t from 0 to 1.
export function heatColour(t) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const stops = dark
    ? [[29, 32, 41], [90, 50, 90], [214, 96, 60], [255, 226, 150]]
    : [[244, 245, 248], [252, 210, 140], [226, 106, 58], [120, 20, 60]];
  const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  return stops[i].map((v, k) => Math.round(v + (stops[i + 1][k] - v) * (at - i)));
}

// value(layer, expert) gives [r, g, b].
export function drawMap(canvas, layers, experts, value) {
  canvas.width = experts;
  canvas.height = layers;
  const context = canvas.getContext("2d");
  const image = context.createImageData(experts, layers);
  for (let l = 0; l < layers; l++)
    for (let e = 0; e < experts; e++) {
      const [r, g, b] = value(l, e);
      image.data.set([r, g, b, 255], (l * experts + e) * 4);
    }
  context.putImageData(image, 0, 0);
}

// A hue of its own for the i-th of n; red is left for what is wrong.
export function hue(i, n) {
  const h = 35 + (i * 300) / Math.max(n, 1), dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const s = 0.55, l = dark ? 0.6 : 0.5, a = s * Math.min(l, 1 - l);
  return [0, 8, 4].map((k) => {
    const t = (k + h / 30) % 12;
    return Math.round(255 * (l - a * Math.max(-1, Math.min(t - 3, 9 - t, 1))));
  });
}
