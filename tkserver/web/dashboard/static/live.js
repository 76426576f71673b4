// Adds events to the table of the live page as they arrive. Without JavaScript, the page shows the latest ones.
"use strict";

const table = document.querySelector("#events tbody");
const pause = document.querySelector("#pause");
const state = document.querySelector("#state");
const seen = new Set([...table.rows].map((row) => row.dataset.key));
const MAX_ROWS = 200;
let paused = false;
let source = null;

function add(event) {
  const [key, moment, outcome, user, details] = event;
  if (seen.has(key)) return;
  seen.add(key);
  const row = table.insertRow(0);
  row.dataset.key = key;
  row.className = outcome;
  const time = new Date(moment);
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = time.toLocaleTimeString();
  head.title = time.toLocaleString();
  row.append(head);
  for (const text of [outcome, user, details]) row.insertCell().textContent = text;
  for (const cell of row.cells) cell.classList.add("text");
  while (table.rows.length > MAX_ROWS) table.deleteRow(-1);
}

function connect() {
  source = new EventSource(table.closest("[data-url]").dataset.url);
  source.onmessage = (message) => {
    state.textContent = "Waiting for events.";
    for (const event of JSON.parse(message.data).reverse()) add(event);
  };
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) state.textContent = "The connection has ended. Reload the page.";
  };
}

pause.hidden = false;
pause.addEventListener("click", () => {
  paused = !paused;
  pause.textContent = paused ? "Continue" : "Pause";
  state.textContent = paused ? "Paused." : "Waiting for events.";
  if (paused) source.close();
  else connect();
});
connect();
