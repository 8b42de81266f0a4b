// Tabs, and whether the cluster is ready.
import { request } from "./api.js";
import { startChat } from "./chat.js";
import { showOps } from "./ops.js";

const tabs = [...document.querySelectorAll('[role="tab"]')];

function select(tab, focus) {
  for (const other of tabs) {
    const on = other === tab;
    other.setAttribute("aria-selected", on);
    other.tabIndex = on ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !on;
  }
  if (focus) tab.focus();
  showOps(tab.id === "tab-ops");
  history.replaceState(null, "", tab.id === "tab-ops" ? "#operations" : location.pathname);
}

tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) select(tabs[(i + step + tabs.length) % tabs.length], true);
  });
});

const health = document.getElementById("health");
async function look() {
  try {
    const answer = await (await request("/ready")).json();
    health.className = "pill " + (answer.ready ? "good" : "warn");
    health.textContent = answer.ready ? "ready" : answer.reason;
    health.title = health.textContent;
  } catch {
    health.className = "pill bad";
    health.textContent = "no coordinator";
  }
  setTimeout(look, 3000);
}

startChat();
select(location.hash === "#operations" ? tabs[1] : tabs[0]);
look();
