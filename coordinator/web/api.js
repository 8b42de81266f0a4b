// What both pages need of the server: requests with the key of this tab, and when one is missing.

const form = document.getElementById("key-form");
const field = document.getElementById("key");
const why = document.getElementById("key-why");
let waiting = [];

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", field.value.trim());
  field.value = "";
  form.hidden = true;
  for (const go of waiting.splice(0)) go();
});

export function askForKey(status) {
  why.textContent = status === 403 ? "This needs an administrator’s key." : "";
  if (form.hidden) {
    form.hidden = false;
    field.focus();
  }
}

// Resolves when a new key has been given.
export const newKey = () => new Promise((resolve) => waiting.push(resolve));

export function request(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers };
  if (key) headers.Authorization = "Bearer " + key;
  return fetch(path, { cache: "no-store", ...options, headers });
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function check(response) {
  if (response.ok) return response;
  let message = response.status + " " + response.statusText;
  try {
    message = (await response.json()).error.message;
  } catch {
    // no JSON: the status has to do
  }
  if (response.status === 401 || response.status === 403) askForKey(response.status);
  throw new Refused(response.status, message);
}

export const json = async (path, options) => (await check(await request(path, options))).json();
export const text = async (path) => (await check(await request(path))).text();

// An element: make("p", {className: "x"}, child, "text").
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}
