// The live page. All that comes from the server is put in as text, never as markup: peers choose some of it.

import { Charts } from "./draw.js";
import { bytes, count, delay, span } from "./figures.js";
import { Rows, cell, make, number, set } from "./rows.js";

const $ = (id) => document.getElementById(id);
const LOST = 6000;              // milliseconds without an event, after which the link counts as lost
const SHOWN = 100;              // connections that are listed
const LONG = 12;                // listeners, beyond which their table scrolls by itself
const TOKEN = "netsvc-token";

const charts = new Charts($("charts"));
const open = new Set();         // listeners whose limits are shown
let limits = new Map();
let current = null;             // the last status
let order = "rate", words = "";
let link = null, retry = 1000, retrying = 0;

// --- words ---

const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const keyOf = (listener) => JSON.stringify([listener.service, listener.protocol, listener.place]);
const sum = (counted) => Object.values(counted).reduce((all, each) => all + each, 0);

function say(text) {
  $("message").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { $("message").textContent = ""; }, 6000);
}

// --- asking the server ---

function headers(more) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function post(path) {
  try {
    const answer = await fetch(path, { method: "POST", headers: headers({ "Content-Type": "application/json" }), body: "{}" });
    const result = await answer.json();
    if (answer.status === 401) login(true);
    return { ok: answer.ok, lines: result.lines || (result.error ? [result.error] : []) };
  } catch {
    return { ok: false, lines: ["the server does not answer"] };
  }
}

function login(wrong) {
  if ($("login").open) return;
  if (wrong && sessionStorage.getItem(TOKEN)) set($("login-text"), "That is not the word in its token file. Try again.");
  $("login").showModal();
}

function ask(title, text, yes, danger) {
  return new Promise((answered) => {
    set($("ask-title"), title);
    set($("ask-text"), text);
    set($("ask-yes"), yes);
    $("ask-yes").className = danger ? "danger" : "primary";
    $("ask").onclose = () => answered($("ask").returnValue === "yes");
    $("ask").returnValue = "";
    $("ask").showModal();
    $("ask-no").focus();
  });
}

const COMMANDS = {
  reload: ["Reload the configuration?", "Changes take effect. Open connections continue.", "Reload", false],
  upgrade: ["Upgrade?", "The installed version takes over the ports. Open connections end as in a drain.", "Upgrade", false],
  drain: ["Drain and stop?", "netsvc accepts no more connections, lets the open ones end, and stops. It does not start again by itself.", "Drain and stop", true],
};

async function command(button) {
  const name = button.dataset.command;
  if (!await ask(...COMMANDS[name])) return;
  button.disabled = true;
  const { ok, lines } = await post(`/api/${name}`);
  button.disabled = false;
  say(lines.join("\n") || (ok ? "Done." : "Failed."));
}

// --- the link ---

function linked(state) {
  set($("link"), { live: "live", lost: "connection lost, trying again", connecting: "connecting", refused: "token needed" }[state]);
  $("link").className = `link ${state === "live" ? "good" : state === "lost" ? "bad" : ""}`;
  document.body.classList.toggle("stale", state !== "live");
}

async function connect() {
  clearTimeout(retrying);
  if (link) link.abort();
  const mine = link = new AbortController();
  let watchdog = 0;
  const alive = () => { clearTimeout(watchdog); watchdog = setTimeout(() => mine.abort(), LOST); };
  try {
    alive();
    const query = new URLSearchParams({ connections: SHOWN, order, words });
    const answer = await fetch(`/api/stream?${query}`, { headers: headers({}), signal: mine.signal, cache: "no-store" });
    if (answer.status === 401) { linked("refused"); login(true); return; }
    if (!answer.ok) {
      const result = await answer.json().catch(() => ({}));
      say(result.error || `The server answers ${answer.status}.`);
      throw new Error("refused");
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      alive();
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const event = text.slice(0, end);
        text = text.slice(end + 2);
        if (mine !== link) return;
        take(/^event: (\w+)$/m.exec(event)[1], JSON.parse(/^data: (.*)$/m.exec(event)[1]));
      }
    }
  } catch { /* it is lost, whatever it was */ } finally {
    clearTimeout(watchdog);
    if (mine === link && !$("login").open) {
      linked("lost");
      retrying = setTimeout(connect, retry);
      retry = Math.min(retry * 2, 8000);
    }
  }
}

function take(kind, data) {
  if (kind === "history") {
    charts.begin(data);
  } else if (kind === "limits") {
    limits = new Map(data.map((each) => [keyOf(each), each.limits]));
  } else if (kind === "status") {
    retry = 1000;
    linked("live");
    // A link sends no token along.
    $("links").hidden = sessionStorage.getItem(TOKEN) !== null;
    current = data;
    charts.add(data.point);
    show();
  }
}

// --- what is shown ---

const peers = new Rows(document.querySelector("#peers tbody"), (row, item) => {
  row.dataset.id = item.id;
  row.parts = {
    peer: cell(row, "peer"), service: cell(row, "service"), worker: cell(row, "worker", "Worker"), age: cell(row, "number", "Age"),
    received: cell(row, "number", "In"), sent: cell(row, "number", "Out"),
    rate_in: cell(row, "number", "In/s"), rate_out: cell(row, "number", "Out/s"), act: cell(row, "number act"),
  };
  set(row.parts.peer, item.peer);
  row.parts.service.append(`${item.service} ${item.protocol} `, make("span", "tag", item.place));
  row.parts.service.title = item.place;
  const home = current.processes.find((each) => item.id.startsWith(`${each.pid}-`));
  set(row.parts.worker, home ? String(home.worker) : "");
  const button = make("button", "small", "Close");
  button.type = "button";
  button.setAttribute("aria-label", `Close ${item.peer}`);
  row.parts.act.append(button);
}, (row, item) => {
  set(row.parts.age, span(item.age));
  number(row.parts.received, item.bytes_in, bytes(item.bytes_in));
  number(row.parts.sent, item.bytes_out, bytes(item.bytes_out));
  number(row.parts.rate_in, item.rate_in, bytes(item.rate_in));
  number(row.parts.rate_out, item.rate_out, bytes(item.rate_out));
});

const held = () => {
  const body = peers.parent;
  return body.matches(":hover") || body.contains(document.activeElement);
};

function showConnections() {
  const holding = held() && peers.rows.size > 0 && peers.words === words && peers.order === order;
  Object.assign(peers, { words, order });
  peers.show(current.connections, (each) => each.id, holding);
  const all = current.processes.reduce((total, each) => total + each.open, 0);
  const listed = current.connections.length;
  const found = words && listed < SHOWN ? `${count(listed)} found, of` : `${count(listed)} of`;
  set($("connections-count"), listed < all ? `${found} ${count(all)}` : count(all));
  $("held").hidden = !holding;
  $("nobody").hidden = listed > 0 || peers.rows.size > 0;
  set($("nobody"), words ? "No connection has these words." : "No connections.");
}

const services = new Rows($("services"), (body, item) => {
  const row = make("tr");
  const parts = body.parts = {
    name: cell(row), place: cell(row, "place-cell"), open: cell(row, "number", "Open"), accepted: cell(row, "number", "Accepted"),
    received: cell(row, "number", "In"), sent: cell(row, "number", "Out"), refused: cell(row, "number", "Refused"),
    errors: cell(row, "number", "Errors"), act: cell(row, "number act"),
  };
  parts.dot = make("span", "dot");
  parts.name.append(parts.dot, make("span", "name", item.service), ` ${item.protocol}`);
  parts.name.append(make("span", "tag", item.kind === "datagram" ? "datagram" : "stream"));
  if (item.tls) parts.name.append(make("span", "tag", "TLS"));
  if (item.proxy) parts.name.append(make("span", "tag", "PROXY"));
  parts.problem = make("span", "problem");
  parts.place.append(make("span", "place", item.place), parts.problem);
  const key = keyOf(item), button = make("button", "small", "Limits");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-label", `Limits of ${item.service} ${item.protocol}`);
  button.addEventListener("click", () => {
    if (!open.delete(key)) open.add(key);
    showServices();
  });
  parts.act.append(button);
  body.append(row);
}, (body, item) => {
  const { parts } = body, { counts } = item, key = keyOf(item);
  parts.dot.className = `dot ${item.up ? "good" : "bad"}`;
  parts.dot.title = item.up ? "up" : "down";
  set(parts.problem, item.up ? "" : item.problem || "down");
  number(parts.open, counts.open, count(counts.open));
  number(parts.accepted, counts.accepted, count(counts.accepted));
  number(parts.received, counts.bytes_in, bytes(counts.bytes_in));
  number(parts.sent, counts.bytes_out, bytes(counts.bytes_out));
  const refused = sum(counts.refused), errors = counts.errors + counts.dropped;
  number(parts.refused, refused, count(refused));
  number(parts.errors, errors, count(errors));
  parts.errors.title = `${counts.errors} errors, ${counts.dropped} dropped`;
  parts.act.firstChild.setAttribute("aria-expanded", String(open.has(key)));
  showLimits(body, open.has(key) ? limits.get(key) || [] : null);
}, "tbody");

function showLimits(body, list) {
  const text = JSON.stringify(list);
  if (body.limits === text) return;
  body.limits = text;
  if (body.children.length > 1) body.lastElementChild.remove();
  if (list === null) return;
  const row = make("tr", "limits"), inside = make("td"), all = make("dl");
  inside.colSpan = 9;
  for (const limit of list) {
    const one = make("div", limit.chosen ? "chosen" : "");
    one.append(make("dt", "", limit.name + (limit.reports ? ", only reports" : "")), make("dd", "", limit.value));
    one.title = `${limit.chosen ? "set" : "default"}, shared by: ${limit.level}`;
    all.append(one);
  }
  if (!list.length) all.append(make("div", "", "None."));
  inside.append(all);
  row.append(inside);
  body.append(row);
}

function showServices() {
  const list = [...current.listeners].sort((one, two) => one.service.localeCompare(two.service, "en", { numeric: true }));
  services.show(list, keyOf);
  // The connections are to be found below, however many listeners there are.
  const long = list.length > LONG;
  $("services-panel").classList.toggle("long", long);
  if (long) $("services-panel").tabIndex = 0; else $("services-panel").removeAttribute("tabindex");
  const down = list.filter((each) => !each.up).length;
  set($("services-count"), plural(list.length, "listener") + (down ? `, ${down} down` : ""));
}

const reasons = new Rows($("reasons"), (row, item) => {
  row.parts = { number: make("span", "number") };
  const NS = "http://www.w3.org/2000/svg";
  const bar = document.createElementNS(NS, "svg");
  bar.setAttribute("aria-hidden", "true");
  row.parts.bar = bar.appendChild(document.createElementNS(NS, "rect"));
  row.parts.bar.setAttribute("height", "100%");
  row.append(make("span", "name", item.name), row.parts.number, bar);
}, (row, item) => {
  set(row.parts.number, count(item.number));
  row.parts.bar.setAttribute("width", `${100 * item.number / item.most}%`);
}, "li");

const refusals = new Rows(document.querySelector("#refusals tbody"), (row, item) => {
  row.when = cell(row);
  const who = cell(row), why = cell(row);
  who.append(make("span", "peer", item.peer || "-"));
  why.append(make("span", "name", item.limit), ` ${item.action}, ${item.service} ${item.protocol}`);
}, (row, item) => set(row.when, `${span(current.time - item.time)} ago`));

function showRefusals() {
  const counted = Object.entries(current.totals.refused).filter((each) => each[1] > 0).sort((one, two) => two[1] - one[1]);
  const most = counted.length ? counted[0][1] : 1;
  reasons.show(counted.map(([name, many]) => ({ name, number: many, most })), (each) => each.name);
  $("no-reasons").hidden = counted.length > 0;
  set($("refused-count"), counted.length ? count(sum(current.totals.refused)) : "");
  const met = new Map();
  refusals.show(current.refusals.slice(0, 50), (each) => {
    const key = JSON.stringify([each.time, each.peer, each.limit, each.place]);
    met.set(key, (met.get(key) || 0) + 1);
    return `${key}${met.get(key)}`;
  });
  $("no-refusals").hidden = current.refusals.length > 0;
}

const processes = new Rows(document.querySelector("#processes tbody"), (row, item) => {
  row.parts = ["", "State", "Up", "Open", "Late", "Worst", "Memory", "Files", "CPU"]
    .map((label, place) => cell(row, place > 1 ? "number" : "", label));
  row.parts[0].append(make("span", "name", item.worker ? `worker ${item.worker}` : "netsvc"), ` pid ${item.pid}`);
}, (row, item) => {
  const { vitals } = item;
  const texts = [null, item.state, span(current.time - item.started), count(item.open), delay(vitals.delay),
    delay(vitals.worst_delay), bytes(vitals.memory),
    `${count(vitals.descriptors)}${vitals.descriptors_limit ? ` of ${count(vitals.descriptors_limit)}` : ""}`, span(vitals.cpu)];
  texts.forEach((text, place) => { if (text !== null) set(row.parts[place], text); });
});

function show() {
  const ready = current.state === "ready" && !current.not_ready.length;
  const state = ready ? "Ready" : current.state === "ready" ? "Not ready" : current.state[0].toUpperCase() + current.state.slice(1);
  set($("state"), state);
  $("state").className = `pill ${ready ? "good" : current.state === "ready" ? "bad" : "warn"}`;
  set($("trouble"), current.not_ready.join("\n"));
  $("trouble").hidden = !current.not_ready.length;
  set($("version"), [...new Set(current.processes.map((each) => each.version))].join(", "));
  document.body.classList.toggle("several", current.processes.length > 1);
  const title = `${ready ? "" : `${state}: `}${plural(current.processes.reduce((all, each) => all + each.open, 0), "connection")} · netsvc`;
  if (document.title !== title) document.title = title;
  showServices();
  showConnections();
  showRefusals();
  processes.show(current.processes, (each) => `${each.worker} ${each.pid}`);
}

// --- the keyboard and the mouse ---

document.querySelectorAll("[data-command]").forEach((button) => button.addEventListener("click", () => command(button)));

function disarm(button) {
  if (!button.classList.contains("armed")) return;
  clearTimeout(button.timer);
  button.classList.remove("armed");
  set(button, "Close");
}

$("peers").addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const row = button.closest("tr");
  if (!button.classList.contains("armed")) {
    document.querySelectorAll("#peers .armed").forEach(disarm);
    button.classList.add("armed");
    set(button, "Sure?");
    button.timer = setTimeout(disarm, 4000, button);
    return;
  }
  disarm(button);
  button.disabled = true;
  const { ok, lines } = await post(`/api/connections/${encodeURIComponent(row.dataset.id)}/close`);
  say(ok ? `Closed ${row.parts.peer.textContent}` : lines.join("\n"));
  button.disabled = false;
  if (ok) {
    row.classList.add("gone");
    // The focus stays in the table, for closing one connection after another with the keyboard.
    const next = row.nextElementSibling || row.previousElementSibling;
    (next ? next.querySelector("button") : $("search")).focus({ preventScroll: true });
  }
});
$("peers").addEventListener("focusout", (event) => { if (event.target.matches("button")) disarm(event.target); });

document.querySelectorAll("[name=order]").forEach((input) => input.addEventListener("change", () => {
  order = input.value;
  connect();
}));
$("search").addEventListener("input", () => {
  clearTimeout(say.searching);
  say.searching = setTimeout(() => { words = $("search").value.trim().split(/\s+/).slice(0, 8).join(" "); connect(); }, 250);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest("input, dialog")) {
    event.preventDefault();
    $("search").focus();
  } else if (event.key === "Escape" && event.target === $("search")) {
    $("search").value = "";
    $("search").dispatchEvent(new Event("input"));
    $("search").blur();
  }
});

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("yes");
  });
}
$("ask-no").addEventListener("click", () => $("ask").close(""));
$("login").addEventListener("close", () => {
  if ($("token").value) sessionStorage.setItem(TOKEN, $("token").value.trim());
  $("token").value = "";
  connect();
});
addEventListener("online", connect);
document.addEventListener("visibilitychange", () => { if (!document.hidden && document.body.classList.contains("stale") && !$("login").open) connect(); });

connect();
