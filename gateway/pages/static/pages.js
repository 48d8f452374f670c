// What is nicer with a script: remembered colours, keys, and a list that grows by itself. All else works without.
"use strict";

const ORDER = ["system", "light", "dark"];
const WORDS = { system: "system", light: "light", dark: "dark" };
const POLL_MS = 2000;
const MAX_ROWS = 200;

function setUpTheme() {
  const button = document.getElementById("theme");
  const word = document.getElementById("theme-word");
  const show = () => { word.textContent = WORDS[document.documentElement.dataset.theme ?? "system"]; };
  button.hidden = false;
  show();
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const next = ORDER[(ORDER.indexOf(root.dataset.theme ?? "system") + 1) % ORDER.length];
    if (next === "system") delete root.dataset.theme; else root.dataset.theme = next;
    try { localStorage.setItem("gateway-theme", next); } catch { /* it lasts as long as the page */ }
    show();
  });
}

function setUpKeys() {
  document.getElementById("keys").hidden = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const field = event.target;
    if (field instanceof HTMLElement && field.matches("input, select, textarea")) {
      if (event.key === "Escape") field.blur();
      return;
    }
    if (event.key === "/") {
      const find = document.querySelector("#q, #domain");
      if (find) { event.preventDefault(); find.focus(); find.select(); } else location.assign("/traces");
    } else if (event.key === "j" || event.key === "k") {
      const links = [...document.querySelectorAll("a.open")];
      const at = links.indexOf(document.activeElement);
      const next = links[event.key === "j" ? at + 1 : Math.max(at - 1, 0)];
      if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
    } else if (event.key === "u") {
      const up = document.getElementById("up");
      if (up) up.click();
    }
  });
}

function setUpTail() {
  const lines = document.getElementById("lines");
  const live = document.getElementById("live");
  if (!lines || lines.dataset.newest === undefined) return;
  let newest = lines.dataset.newest;
  let isOn = true;
  const said = document.createElement("span");
  said.textContent = "Live";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Pause";
  live.append(said, " ");
  live.after(button);
  button.addEventListener("click", () => {
    isOn = !isOn;
    button.textContent = isOn ? "Pause" : "Go on";
    said.textContent = isOn ? "Live" : "Paused";
  });
  const look = async () => {
    if (isOn && !document.hidden) {
      try {
        const query = lines.dataset.query ? `&${lines.dataset.query}` : "";
        const answer = await fetch(`/traces/new?after=${newest}${query}`, { credentials: "same-origin" });
        if (!answer.ok) throw new Error(String(answer.status));
        newest = answer.headers.get("X-Newest-Key") ?? newest;
        const count = Number(answer.headers.get("X-Count"));
        if (count > 0) {
          const template = document.createElement("template");
          template.innerHTML = await answer.text();
          for (const row of template.content.querySelectorAll("tr")) row.classList.add("fresh");
          lines.prepend(template.content);
          document.getElementById("empty")?.remove();
          const focused = document.activeElement?.closest("tr");
          while (lines.rows.length > MAX_ROWS && lines.rows[lines.rows.length - 1] !== focused) lines.deleteRow(-1);
          said.textContent = `Live: ${count} new`;
        }
      } catch {
        said.textContent = "No answer from the gateway; trying again";
      }
    }
    setTimeout(look, POLL_MS);
  };
  setTimeout(look, POLL_MS);
}

setUpTheme();
setUpKeys();
setUpTail();
