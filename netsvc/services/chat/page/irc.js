// Lines of IRC with message tags (modern.ircdocs.horse and ircv3.net), and a client that loses and doubles no message.

const WANTED = [
  "message-tags", "server-time", "batch", "labeled-response", "echo-message", "multi-prefix", "account-notify",
  "away-notify", "extended-join", "invite-notify", "setname", "standard-replies", "sasl",
  "draft/chathistory", "draft/read-marker",
];
const PAGE = 100;
// Bytes of text in a line: the server puts a name, a host and the room before it, and cuts at 512.
const LONGEST = 350;
const ESCAPES = { ":": ";", s: " ", r: "\r", n: "\n", "\\": "\\" };
// Bold, colours and other formats of IRC clients.
const FORMATS = /\x03(\d{1,2}(,\d{1,2})?)?|[\x02\x04\x0f\x11\x16\x1d\x1e\x1f]/g;

export function parse(line) {
  const found = /^(?:@(\S+) +)?(?::(\S+) +)?(\S+)(.*)$/s.exec(line);
  if (!found) return null;
  const [, tags = "", source = "", command, rest] = found;
  const params = [];
  for (const each of rest.matchAll(/ +(?::(.*)$|([^ ]+))/gs)) params.push(each[1] ?? each[2]);
  const parsed = {};
  for (const tag of tags.split(";").filter(Boolean)) {
    const at = tag.indexOf("=");
    const value = at < 0 ? "" : tag.slice(at + 1).replace(/\\(.?)/g, (_, letter) => ESCAPES[letter] ?? letter);
    parsed[at < 0 ? tag : tag.slice(0, at)] = value;
  }
  return { tags: parsed, source, nick: source.split("!")[0], command: command.toUpperCase(), params };
}

export function format(command, ...params) {
  const clean = params.map((each) => String(each).replace(/[\r\n\0]+/g, " "));
  const last = clean.pop();
  if (last === undefined) return command;
  return [command, ...clean, last === "" || /^:|[ ]/.test(last) ? `:${last}` : last].join(" ");
}

// Cut a text into parts of so many bytes, not within a letter, and at a space where there is one.
export function cut(text, most = LONGEST) {
  const encoder = new TextEncoder();
  const parts = [];
  let part = "", size = 0;
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: "grapheme" }).segment(text)) {
    const bytes = encoder.encode(segment).length;
    if (size + bytes > most && part) {
      const space = part.lastIndexOf(" ");
      const keep = space > part.length / 2 ? space + 1 : part.length;
      parts.push(part.slice(0, keep).trimEnd());
      part = part.slice(keep);
      size = encoder.encode(part).length;
    }
    part += segment;
    size += bytes;
  }
  return [...parts, part];
}

export const fold = (name) => name.toLowerCase();
export const isRoom = (name) => name.startsWith("#");

class Room {
  constructor(name) {
    this.name = name;
    this.topic = "";
    this.members = new Map();
    this.names = null;
    this.ids = new Set();
    this.first = this.last = null;
    this.joined = false;
    // While earlier messages are fetched, new ones wait behind them.
    this.waiting = null;
    this.reachedStart = false;
    this.read = null;
  }
}

// Calls `show(kind, room, line)`, `changed(room)`, `state(text)`, `refused(text)` and `entered()` of its view.
export class Client {
  constructor(view, address) {
    this.view = view;
    this.address = address;
    this.rooms = new Map();
    this.wanted = new Set();
    this.pending = [];
    this.delay = 0;
    this.label = 0;
    this.nick = "";
    this.entered = false;
    this.ended = false;
  }

  enter(nick, room, password, key) {
    Object.assign(this, { nick, password, key, ended: false, entered: false });
    this.wanted = new Set([room]);
    this.connect();
  }

  connect() {
    clearTimeout(this.timer);
    this.available = new Set();
    this.caps = new Set();
    this.batches = new Map();
    this.registered = false;
    const socket = (this.socket = new WebSocket(this.address, ["text.ircv3.net"]));
    socket.onopen = () => {
      this.heard = Date.now();
      this.send("CAP", "LS", "302");
    };
    socket.onmessage = ({ data }) => {
      this.heard = Date.now();
      const message = parse(data);
      if (message) this.receive(message);
    };
    socket.onclose = () => {
      if (this.socket === socket) this.lost();
    };
  }

  lost() {
    this.socket = null;
    clearInterval(this.watch);
    for (const room of this.rooms.values()) room.joined = false;
    if (this.ended) return;
    if (!this.entered) {
      this.end("The server cannot be reached. Try again later.");
      return;
    }
    this.delay = Math.min(30, this.delay ? this.delay * 2 : 1);
    this.view.state("Connection lost. Connecting again …");
    this.timer = setTimeout(() => this.connect(), this.delay * 1000 * (0.75 + Math.random() / 2));
  }

  end(reason) {
    this.ended = true;
    this.socket?.close();
    this.view.refused(reason);
  }

  hurry() {
    if (this.socket === null && !this.ended) this.connect();
  }

  send(command, ...params) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(format(command, ...params));
  }

  room(name) {
    const key = fold(name);
    if (!this.rooms.has(key)) {
      this.rooms.set(key, new Room(name));
      this.view.changed(this.rooms.get(key));
    }
    return this.rooms.get(key);
  }

  join(name) {
    this.wanted.add(name);
    this.send("JOIN", name);
  }

  part(room) {
    this.wanted.delete(room.name);
    for (const name of this.wanted) if (fold(name) === fold(room.name)) this.wanted.delete(name);
    if (isRoom(room.name)) this.send("PART", room.name);
    this.rooms.delete(fold(room.name));
    this.view.closed(room);
  }

  // A message is shown as pending until its echo, with its label, comes back.
  say(room, text, isAction = false) {
    for (const part of cut(text)) {
      const message = { room, text: isAction ? `\x01ACTION ${part}\x01` : part, label: `l${++this.label}` };
      message.line = this.view.show("pending", room, { nick: this.nick, text: part, isAction, time: new Date() });
      this.pending.push(message);
      this.transmit(message);
    }
  }

  transmit(message) {
    message.sent = true;
    if (this.socket?.readyState !== WebSocket.OPEN || !this.registered) return;
    const tags = this.caps.has("labeled-response") ? `@label=${message.label} ` : "";
    this.socket.send(tags + format("PRIVMSG", message.room.name, message.text));
    if (!this.caps.has("echo-message")) this.settle(message);
  }

  settle(message) {
    this.pending = this.pending.filter((each) => each !== message);
    this.view.settle(message.line);
  }

  earlier(room) {
    if (room.waiting || room.reachedStart || !room.first || !this.caps.has("draft/chathistory")) return;
    room.fetching = "before";
    room.waiting = [];
    this.send("CHATHISTORY", "BEFORE", room.name, `msgid=${room.first}`, PAGE);
  }

  catch_up(room) {
    if (!this.caps.has("draft/chathistory")) {
      this.resend(room);
      return;
    }
    room.waiting ??= [];
    room.fetching = room.last ? "after" : "latest";
    if (room.last) this.send("CHATHISTORY", "AFTER", room.name, `msgid=${room.last}`, PAGE);
    else this.send("CHATHISTORY", "LATEST", room.name, "*", PAGE);
  }

  fetched(room, messages) {
    const way = room.fetching;
    const isFull = messages.length >= PAGE;
    if (way === "before") {
      if (!isFull) room.reachedStart = true;
      this.view.prepend(room, messages.map((each) => this.line_of(room, each)).filter(Boolean));
    } else {
      if (way === "latest" && !isFull) room.reachedStart = true;
      for (const each of messages) this.deliver(room, each, true);
      if (way === "after" && isFull) {
        this.catch_up(room);
        return;
      }
    }
    room.fetching = null;
    const waiting = room.waiting ?? [];
    room.waiting = null;
    for (const each of waiting) this.deliver(room, each, false);
    if (way !== "before") this.resend(room);
    this.view.changed(room);
  }

  // After a lost connection: what was not answered and is not in the history has not arrived.
  resend(room) {
    for (const message of this.pending) if (message.room === room) this.transmit(message);
  }

  line_of(room, message) {
    const id = message.tags.msgid;
    if (id) {
      if (room.ids.has(id)) return null;
      room.ids.add(id);
    }
    const time = message.tags.time ? new Date(message.tags.time) : new Date();
    let text = message.params[1] ?? "";
    const action = /^\x01ACTION (.*?)\x01?$/s.exec(text);
    if (action) text = action[1];
    else if (text.startsWith("\x01")) return null;
    text = text.replace(FORMATS, "");
    return { id, time, nick: message.nick, text, isAction: Boolean(action), isNotice: message.command === "NOTICE" };
  }

  deliver(room, message, isHistory) {
    if (room.waiting && !isHistory) {
      room.waiting.push(message);
      return;
    }
    const mine = fold(message.nick) === fold(this.nick);
    if (mine) {
      const label = message.tags.label;
      const own = this.pending.find(
        (each) => each.room === room && (label ? each.label === label : each.text === message.params[1]),
      );
      if (own) this.settle(own);
    }
    const line = this.line_of(room, message);
    if (!line) return;
    if (line.id) {
      room.last = line.id;
      room.first ??= line.id;
    }
    this.view.show("message", room, { ...line, mine, isHistory });
  }

  event(room, message, text) {
    const time = message.tags.time ? new Date(message.tags.time) : new Date();
    this.view.show("event", room, { time, text });
    this.view.changed(room);
  }

  receive(message) {
    const batch = this.batches.get(message.tags.batch);
    if (batch && message.command !== "BATCH") {
      if (batch.type === "chathistory") {
        batch.messages.push(message);
        return;
      }
      // Of a labeled response: its label is that of the batch.
      message.tags.label ??= batch.label;
    }
    const { command, params, nick, tags } = message;
    const mine = nick !== "" && fold(nick) === fold(this.nick);
    switch (command) {
      case "PING": this.send("PONG", ...params); break;
      case "CAP": this.capabilities(params); break;
      case "AUTHENTICATE": this.authenticate(params[0]); break;
      case "903": this.introduce(); break;
      case "902": case "904": case "905": case "906": this.end("That is not the password of this name."); break;
      case "464": this.end("The password of the chat is wrong or missing."); break;
      case "001": this.welcome(params[0]); break;
      case "005": break;
      case "BATCH": this.batch(params, tags); break;
      case "JOIN": {
        const room = this.room(params[0]);
        if (mine) {
          room.joined = true;
          room.name = params[0];
          room.members.clear();
          this.view.joined(room);
          if (this.caps.has("draft/read-marker")) this.send("MARKREAD", room.name);
          this.catch_up(room);
        } else {
          room.members.set(nick, "");
          this.event(room, message, `${nick} has joined`);
        }
        break;
      }
      case "PART": case "KICK": {
        const room = this.room(params[0]);
        const who = command === "KICK" ? params[1] : nick;
        const why = command === "KICK" ? params[2] : params[1];
        room.members.delete(who);
        const how = command === "KICK" ? `was removed by ${nick}` : "has left";
        if (fold(who) === fold(this.nick)) {
          room.joined = false;
          for (const name of this.wanted) if (fold(name) === fold(room.name)) this.wanted.delete(name);
          if (!this.rooms.has(fold(params[0]))) break;
        }
        this.event(room, message, `${who} ${how}${why ? `: ${why}` : ""}`);
        break;
      }
      case "QUIT":
        for (const room of this.rooms.values()) {
          if (room.members.delete(nick)) this.event(room, message, `${nick} has left${params[0] ? `: ${params[0]}` : ""}`);
        }
        break;
      case "NICK":
        if (mine) this.nick = params[0];
        for (const room of this.rooms.values()) {
          if (!room.members.has(nick)) continue;
          room.members.set(params[0], room.members.get(nick));
          room.members.delete(nick);
          this.event(room, message, `${nick} is ${params[0]} now`);
        }
        break;
      case "MODE":
        if (isRoom(params[0])) {
          const room = this.room(params[0]);
          this.event(room, message, `${nick} sets ${params.slice(1).join(" ")}`);
          if (/[ohv]/.test(params[1] ?? "")) this.send("NAMES", room.name);
        }
        break;
      case "TOPIC": {
        const room = this.room(params[0]);
        room.topic = params[1] ?? "";
        this.event(room, message, `${nick} sets the topic: ${room.topic}`);
        break;
      }
      case "331": case "332": {
        const room = this.room(params[1]);
        room.topic = command === "332" ? params[2] : "";
        this.view.changed(room);
        break;
      }
      case "353": {
        const room = this.room(params[2]);
        room.names ??= new Map();
        for (const each of params[3].split(" ").filter(Boolean)) {
          const [, prefix, name] = /^([~&@%+]*)(.*)$/.exec(each);
          room.names.set(name.split("!")[0], prefix.slice(0, 1));
        }
        break;
      }
      case "366": {
        const room = this.rooms.get(fold(params[1]));
        if (!room) break;
        room.members = room.names ?? new Map();
        room.names = null;
        this.view.changed(room);
        break;
      }
      case "MARKREAD": {
        const time = /^timestamp=(.+)$/.exec(params[1] ?? "");
        const room = this.room(params[0]);
        room.read = time ? new Date(time[1]) : null;
        this.view.marked(room);
        break;
      }
      case "PRIVMSG": case "NOTICE": {
        const target = params[0].replace(/^[@+]+(?=#)/, "");
        if (command === "NOTICE" && !isRoom(target) && (!nick || nick.includes("."))) {
          this.view.note(params[1]);
          break;
        }
        this.deliver(this.room(isRoom(target) ? target : mine ? target : nick), message, false);
        break;
      }
      case "INVITE": this.view.note(`${nick} invites you to ${params[1]}: /join ${params[1]}`); break;
      case "ERROR": this.view.note(params[0]); break;
      case "FAIL": case "WARN": case "NOTE": this.failed(message); break;
      case "432": case "433": case "436": this.nameRefused(message); break;
      case "PONG": case "AWAY": case "ACCOUNT": case "SETNAME": case "TAGMSG": case "ACK": case "333": break;
      default:
        if (/^[45]\d\d$/.test(command)) this.failed(message);
        else if (/^\d\d\d$/.test(command) && this.entered) this.view.note(params.slice(1).join(" "));
    }
  }

  capabilities([, verb, ...rest]) {
    if (verb === "LS") {
      for (const each of rest.at(-1).split(" ")) this.available.add(each.split("=")[0]);
      if (rest[0] === "*") return;
      const wanted = WANTED.filter((each) => this.available.has(each) && (each !== "sasl" || this.password));
      if (this.password && !this.available.has("sasl")) {
        this.end("Passwords are taken over TLS only: use https.");
        return;
      }
      if (wanted.length) this.send("CAP", "REQ", wanted.join(" "));
      else this.introduce();
    } else if (verb === "ACK") {
      for (const each of rest.at(-1).split(" ").filter(Boolean)) this.caps.add(each);
      if (this.registered) return;
      if (this.caps.has("sasl") && this.password) this.send("AUTHENTICATE", "PLAIN");
      else this.introduce();
    } else if (verb === "NAK") {
      this.introduce();
    }
  }

  // After the log-in: the name belongs to it.
  introduce() {
    if (this.key) this.send("PASS", this.key);
    this.send("NICK", this.nick);
    this.send("USER", "web", "0", "*", this.nick);
    this.send("CAP", "END");
  }

  authenticate(challenge) {
    if (challenge !== "+") return;
    const bytes = new TextEncoder().encode(`\0${this.nick}\0${this.password}`);
    const coded = btoa(String.fromCharCode(...bytes));
    for (let at = 0; at <= coded.length; at += 400) this.send("AUTHENTICATE", coded.slice(at, at + 400) || "+");
  }

  welcome(nick) {
    this.nick = nick;
    this.registered = true;
    this.entered = true;
    this.delay = 0;
    this.view.entered();
    this.view.state("");
    this.watch = setInterval(() => {
      if (Date.now() - this.heard > 90_000) this.socket?.close();
      else if (Date.now() - this.heard > 45_000) this.send("PING", "here");
    }, 15_000);
    for (const name of this.wanted) this.send("JOIN", name);
    for (const room of this.rooms.values()) if (!isRoom(room.name)) this.catch_up(room);
  }

  nameRefused({ params }) {
    if (this.registered) {
      this.view.note(params.at(-1));
    } else if (this.entered && params[1] === this.nick) {
      // The connection that was lost may still hold it.
      this.nick += "_";
      this.send("NICK", this.nick);
    } else {
      this.end(`The name ${params[1]} cannot be had: ${params.at(-1)}`);
    }
  }

  failed({ command, params, tags }) {
    const own = this.pending.find((each) => tags.label && each.label === tags.label);
    if (own) {
      this.pending = this.pending.filter((each) => each !== own);
      this.view.reject(own.line);
    }
    if (params.includes("CHATHISTORY")) {
      for (const room of this.rooms.values()) if (room.waiting) this.fetched(room, []);
      return;
    }
    if (!this.entered) this.end(params.at(-1));
    else this.view.note(/^\d/.test(command) ? params.slice(1).join(" ") : params.at(-1));
  }

  batch([reference, type, ...params], tags) {
    const name = reference.slice(1);
    if (reference.startsWith("+")) {
      this.batches.set(name, { type, params, messages: [], label: tags.label });
      return;
    }
    const batch = this.batches.get(name);
    this.batches.delete(name);
    if (batch?.type !== "chathistory") return;
    const room = this.rooms.get(fold(batch.params[0]));
    if (room) this.fetched(room, batch.messages);
  }

  mark(room, time) {
    if (this.caps.has("draft/read-marker")) this.send("MARKREAD", room.name, `timestamp=${time.toISOString()}`);
  }
}
