// The page: a form to enter, rooms, their lines, and a field to write in. Nothing that others write becomes markup.
import { Client, fold, isRoom } from "./irc.js";

const $ = (selector) => document.querySelector(selector);
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
const LINKS = /\bhttps?:\/\/[^\s<>"]+[^\s<>".,;:!?'’)\]}]/gi;
const MOST_LINES = 2000;
const TITLE = document.title;
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "full" });

// The parts of the page that belong to a room: its log, its button, and what has not been read.
const shown = new Map();
let current = null;

function linked(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(LINKS)) {
    parts.push(text.slice(end, found.index));
    parts.push(element("a", { href: found[0], target: "_blank", rel: "noopener noreferrer" }, found[0]));
    end = found.index + found[0].length;
  }
  return [...parts, text.slice(end)];
}

function hue(name) {
  let sum = 0;
  for (const letter of fold(name)) sum = (sum * 31 + letter.codePointAt(0)) % 360;
  return sum;
}

function named(nick) {
  const made = element("span", { className: "nick" }, nick);
  made.style.setProperty("--hue", hue(nick));
  return made;
}

function mentions(text) {
  const name = client.nick.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(`(^|[^\\p{L}\\p{N}_])${name}($|[^\\p{L}\\p{N}_])`, "iu").test(text);
}

function made(kind, line) {
  const words = element("span", { className: "words" });
  if (kind === "event" || kind === "note") words.append(...linked(line.text));
  else if (line.isAction) words.append("* ", named(line.nick), " ", ...linked(line.text));
  else words.append(named(line.nick), ": ", ...linked(line.text));
  const time = element("time", { dateTime: line.time.toISOString(), title: line.time.toLocaleString() });
  time.append(clock.format(line.time));
  const item = element("div", { className: kind }, time, words);
  if (line.isNotice) item.classList.add("notice");
  if (kind === "message" && !line.mine && mentions(line.text)) item.classList.add("mention");
  item.day = line.time.toDateString();
  item.time = line.time;
  return item;
}

const dayLine = (time) => element("div", { className: "day", day: time.toDateString() }, calendar.format(time));
const isAtEnd = (log) => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
const isWatched = (part) => part === current && document.hasFocus() && isAtEnd(part.log);

function count(part, change) {
  part.unread = change === 0 ? 0 : part.unread + change;
  part.badge.textContent = part.unread || "";
  part.badge.hidden = !part.unread;
  const sum = [...shown.values()].reduce((all, each) => all + each.unread, 0);
  document.title = `${sum ? `(${sum}) ` : ""}${current ? `${current.room.name} · ` : ""}${TITLE}`;
}

function read(part) {
  if (!part) return;
  if (part.unread && part.lastTime) client.mark(part.room, part.lastTime);
  if (part.unread) part.log.querySelector(".new")?.classList.add("seen");
  count(part, 0);
}

const view = {
  entered() {
    $("#enter").hidden = true;
    $("#chat").hidden = false;
  },
  refused(text) {
    $("#enter").hidden = false;
    $("#chat").hidden = true;
    $("#refused").textContent = text;
    $("#enter details").open ||= /password/i.test(text);
  },
  state(text) {
    $("#state").textContent = text;
    $("#state").hidden = !text;
  },
  part(room) {
    const key = fold(room.name);
    let part = shown.get(key);
    if (!part) {
      // No list: its role is that of a log.
      const log = element("div", { className: "log", hidden: true, tabIndex: 0 });
      log.setAttribute("role", "log");
      log.setAttribute("aria-label", room.name);
      const badge = element("span", { className: "count", hidden: true });
      const button = element("button", { type: "button" }, room.name, badge);
      part = { room, log, badge, button, unread: 0, lastTime: null };
      log.addEventListener("scroll", () => {
        if (log.scrollTop < 80) client.earlier(room);
        if (isWatched(part)) read(part);
      });
      button.onclick = () => view.open(part);
      shown.set(key, part);
      $("#logs").append(log);
      $("#rooms").append(element("li", {}, button));
    }
    return part;
  },
  joined(room) {
    view.open(view.part(room));
  },
  closed(room) {
    const part = view.part(room);
    shown.delete(fold(room.name));
    part.log.remove();
    part.button.parentElement.remove();
    if (part === current) {
      current = null;
      const other = shown.values().next().value;
      if (other) view.open(other);
    }
  },
  open(part) {
    if (current && current !== part) {
      current.log.hidden = true;
      current.button.removeAttribute("aria-current");
      current.log.querySelector(".new.seen")?.remove();
    }
    current = part;
    part.log.hidden = false;
    part.button.setAttribute("aria-current", "true");
    part.log.scrollTop = part.log.scrollHeight;
    view.changed(part.room);
    read(part);
    $("#text").focus();
  },
  changed(room) {
    const part = view.part(room);
    if (part !== current) return;
    $("#room").textContent = room.name;
    $("#topic").replaceChildren(...linked(room.topic));
    $("#topic").title = room.topic;
    const names = [...room.members].sort(([a, x], [b, y]) => "@%+".indexOf(x || "+") - "@%+".indexOf(y || "+") || a.localeCompare(b));
    $("#people").textContent = isRoom(room.name) ? `${names.length} here` : "";
    $("#people").hidden = !isRoom(room.name);
    $("#members ul").replaceChildren(...names.map(([name, prefix]) => element("li", {}, prefix, named(name))));
    count(part, part.unread || 0);
    if (isWatched(part)) count(part, 0);
  },
  show(kind, room, line) {
    const part = view.part(room);
    const { log } = part;
    const atEnd = isAtEnd(log);
    const item = made(kind, line);
    // What is not settled yet stays below what is.
    const before = kind === "pending" ? null : log.querySelector(".pending");
    const last = before ? before.previousElementSibling : log.lastElementChild;
    if (last?.day !== item.day) log.insertBefore(dayLine(line.time), before);
    const counts = kind === "message" && !line.mine && !line.isHistory && !isWatched(part);
    if (counts && !part.unread) {
      log.querySelector(".new")?.remove();
      log.insertBefore(element("div", { className: "new", day: item.day }, "new"), before);
    }
    log.insertBefore(item, before);
    if (line.time && kind === "message") part.lastTime = line.time;
    if (counts) count(part, 1);
    if (atEnd || kind === "pending") {
      while (log.childElementCount > MOST_LINES) log.firstElementChild.remove();
      log.scrollTop = log.scrollHeight;
    }
    return item;
  },
  prepend(room, lines) {
    const { log } = view.part(room);
    const height = log.scrollHeight;
    const items = [];
    for (const line of lines) {
      const item = made("message", { ...line, mine: fold(line.nick) === fold(client.nick) });
      if (items.at(-1)?.day !== item.day) items.push(dayLine(line.time));
      items.push(item);
    }
    if (items.length && log.firstElementChild?.day === items.at(-1).day) log.firstElementChild.remove();
    log.prepend(...items);
    if (lines[0]?.id) room.first = lines[0].id;
    log.scrollTop += log.scrollHeight - height;
  },
  settle(item) {
    item.remove();
  },
  reject(item) {
    item.className = "event";
    item.querySelector(".words").prepend("not sent: ");
  },
  marked(room) {
    const { log } = view.part(room);
    if (!room.read || log.querySelector(".new")) return;
    const first = [...log.querySelectorAll(".message")].find((each) => each.time > room.read);
    if (first?.previousElementSibling?.classList.contains("message")) {
      first.before(element("div", { className: "new seen", day: first.day }, "new"));
    }
  },
  note(text) {
    if (current) view.show("note", current.room, { time: new Date(), text });
    else $("#refused").textContent = text;
  },
};

const client = new Client(view, `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${location.pathname}`);
const roomName = (name) => (isRoom(name) ? name : `#${name}`);

$("#enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  $("#refused").textContent = "";
  localStorage.setItem("nick", form.get("nick"));
  client.enter(form.get("nick").trim(), roomName(form.get("room").trim()), form.get("password"), form.get("key"));
});

const HELP = "/me does something · /join ROOM · /part · /nick NAME · /msg NAME TEXT · /topic TEXT · /invite NAME · /kick NAME · /away TEXT · /whois NAME · /register PASSWORD";

// What is written behind a slash; other commands go to the server as they are.
const commands = {
  me: (words) => client.say(current.room, words, true),
  join: (words) => words && client.join(roomName(words.split(" ")[0])),
  part: () => client.part(current.room),
  nick: (words) => client.send("NICK", words),
  topic: (words) => client.send("TOPIC", current.room.name, words),
  away: (words) => client.send("AWAY", ...(words ? [words] : [])),
  register: (password) => client.send("REGISTER", "*", "*", password),
  help: () => view.note(HELP),
  invite: (words) => client.send("INVITE", words, current.room.name),
  kick: (words) => {
    const [name, ...why] = words.split(" ");
    client.send("KICK", current.room.name, name, why.join(" "));
  },
  msg: (words) => {
    const [name, ...rest] = words.split(" ");
    if (!name) return;
    const room = client.room(isRoom(name) ? name : name);
    view.open(view.part(room));
    if (rest.length) client.say(room, rest.join(" "));
  },
};
commands.query = commands.msg;

function say(text) {
  if (!current) return;
  if (text.startsWith("/") && !text.startsWith("//")) {
    const [, name, words = ""] = /^\/(\S*)\s*(.*)$/s.exec(text);
    const command = Object.hasOwn(commands, name.toLowerCase()) ? commands[name.toLowerCase()] : null;
    if (command) command(words.trim());
    else if (name) client.send(name.toUpperCase(), ...words.split(" ").filter(Boolean));
    return;
  }
  for (const line of text.replace(/^\/\//, "/").split("\n")) if (line.trim()) client.say(current.room, line);
}

$("#say").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = $("#text");
  say(field.value);
  field.value = "";
  field.focus();
});

// Tab puts the next name that begins like the word before the cursor.
let completion = null;
function complete(field) {
  if (!completion) {
    const before = field.value.slice(0, field.selectionStart);
    const word = /\S*$/.exec(before)[0];
    const names = [...current.room.members.keys()].filter((name) => fold(name).startsWith(fold(word)));
    if (!word || !names.length) return false;
    completion = { start: before.length - word.length, rest: field.value.slice(field.selectionStart), names, at: 0 };
  }
  const { start, rest, names } = completion;
  const name = names[completion.at++ % names.length] + (start ? " " : ": ");
  field.value = field.value.slice(0, start) + name + rest;
  field.selectionStart = field.selectionEnd = start + name.length;
  return true;
}

$("#text").addEventListener("keydown", (event) => {
  if (event.key === "Tab" && !event.shiftKey && !event.ctrlKey && current && complete(event.target)) {
    event.preventDefault();
    return;
  }
  completion = null;
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("#say").requestSubmit();
  }
});

$("#people").addEventListener("click", () => {
  const open = $("#members").classList.toggle("open");
  $("#people").setAttribute("aria-expanded", String(open));
});
addEventListener("focus", () => current && isAtEnd(current.log) && read(current));
addEventListener("online", () => client.hurry());
addEventListener("resize", () => current && (current.log.scrollTop = current.log.scrollHeight));

$("#enter").nick.value = localStorage.getItem("nick") ?? "";
if (location.hash.length > 1) $("#enter").room.value = decodeURIComponent(location.hash.slice(1));
