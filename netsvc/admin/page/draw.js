// Draws the last minutes: a card for each chart, with what it is now, or was where the pointer is.

import { bytes, count, delay, pace } from "./figures.js";
import { make, set } from "./rows.js";

const NS = "http://www.w3.org/2000/svg";
const SPAN = 300;
const WIDTH = 300, HEIGHT = 72, TOP = 6;
const COLOURS = 6;

function shape(parent, tag, name) {
  const node = document.createElementNS(NS, tag);
  node.setAttribute("class", name);
  parent.append(node);
  return node;
}

// `series` has for each line what it is called and what it is at a point; `least` is the lowest top of the scale.
const CHARTS = [
  { title: "Connections open", least: 4, show: count, series: [["", (point) => point.open]] },
  { title: "New connections", unit: "a second", least: 2, show: pace, series: [["", (point) => point.accepted]] },
  { title: "Traffic", unit: "a second", least: 1024, show: bytes, series: [["in", (point) => point.bytes_in], ["out", (point) => point.bytes_out]] },
  { title: "Datagrams", unit: "a second", least: 2, show: pace, series: [["in", (point) => point.datagrams_in], ["out", (point) => point.datagrams_out]] },
  { title: "Refused", unit: "a second, by limit", least: 1, show: pace, stack: true, series: [] },
  { title: "Event loop late", least: 0.01, show: delay, series: [["", (point) => point.delay]] },
];

class Chart {
  constructor(parent, about) {
    this.about = about;
    const card = make("div", "chart");
    const title = make("h3", "", about.title);
    this.top = make("span");
    title.append(this.top);
    this.values = make("div", "values");
    this.svg = document.createElementNS(NS, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    if (about.stack) this.svg.setAttribute("class", "stack");
    const grid = shape(this.svg, "path", "grid");
    grid.setAttribute("d", [1, 2, 3, 4].map((minute) => `M${minute * WIDTH / 5} 0V${HEIGHT}`).join(""));
    this.lines = [];
    this.labels = [];
    card.append(title, this.values, this.svg);
    parent.append(card);
    this.at = null;
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      this.at = (event.clientX - box.left) / box.width;
      this.tell();
    });
    this.svg.addEventListener("pointerleave", () => { this.at = null; this.tell(); });
  }

  draw(points, reasons) {
    this.points = points;
    const { about } = this;
    this.series = about.stack ? reasons.map((reason) => [reason, (point) => point.refused[reason] || 0]) : about.series;
    const now = points[points.length - 1].time;
    const tops = points.map((point) => {
      const all = this.series.map(([, value]) => value(point));
      return about.stack ? all.reduce((sum, value) => sum + value, 0) : Math.max(...all);
    });
    const top = Math.max(about.least, ...tops) * 1.05;
    const x = (point) => (WIDTH * (1 - (now - point.time) / SPAN)).toFixed(1);
    const y = (value) => (HEIGHT - (HEIGHT - TOP) * value / top).toFixed(1);
    while (this.lines.length < this.series.length) {
      const colour = `s${Math.min(this.lines.length, COLOURS - 1)}`;
      this.lines.push([shape(this.svg, "path", `area ${colour}`), shape(this.svg, "path", `curve ${colour}`)]);
    }
    const floor = points.map(() => 0);
    this.lines.forEach(([area, curve], number) => {
      if (number >= this.series.length) { area.setAttribute("d", ""); curve.setAttribute("d", ""); return; }
      const value = this.series[number][1];
      const under = points.map((point, index) => `${x(point)} ${y(floor[index])}`).reverse();
      const over = points.map((point, index) => {
        const height = value(point) + (about.stack ? floor[index] : 0);
        if (about.stack) floor[index] = height;
        return `${x(point)} ${y(height)}`;
      });
      area.setAttribute("d", `M${over.join("L")}L${under.join("L")}Z`);
      curve.setAttribute("d", `M${over.join("L")}`);
    });
    this.tell();
  }

  tell() {
    if (!this.points) return;
    const { about, points, series } = this;
    let point = points[points.length - 1], when = about.unit || "";
    if (this.at !== null) {
      const time = point.time - (1 - this.at) * SPAN;
      const now = point.time;
      point = points.reduce((best, each) => Math.abs(each.time - time) < Math.abs(best.time - time) ? each : best);
      when = `${Math.round(now - point.time)} s ago`;
      this.cross ||= shape(this.svg, "path", "cross");
      const x = (WIDTH * (1 - (now - point.time) / SPAN)).toFixed(1);
      this.cross.setAttribute("d", `M${x} 0V${HEIGHT}`);
    } else if (this.cross) {
      this.cross.remove();
      this.cross = null;
    }
    set(this.top, when);
    let shown = series.map(([name, value], number) => [name, about.show(value(point)), number, value(point)]);
    if (about.stack) {
      const sum = shown.reduce((all, each) => all + each[3], 0);
      shown = [["", about.show(sum), -1], ...shown.filter((each) => each[3] > 0).sort((one, two) => two[3] - one[3]).slice(0, 2)];
    }
    this.values.classList.toggle("many", Boolean(about.stack));
    while (this.labels.length < shown.length) {
      const label = make("span", "value");
      label.append(make("span"), " ", make("small"));
      this.labels.push(label);
      this.values.append(label);
    }
    this.labels.forEach((label, number) => {
      label.hidden = number >= shown.length;
      if (label.hidden) return;
      const [name, text, colour] = shown[number];
      label.className = name ? `value key s${Math.min(colour, COLOURS - 1)}` : "value";
      set(label.firstChild, text);
      set(label.lastChild, name);
    });
    this.svg.setAttribute("aria-label", `${about.title}: ${shown.map((each) => `${each[1]} ${each[0]}`).join(", ")}`);
  }
}

export class Charts {
  constructor(parent) {
    this.points = [];
    this.reasons = [];
    this.waiting = false;
    this.charts = CHARTS.map((about) => new Chart(parent, about));
  }

  begin(points) {
    this.points = points;
    this.reasons = [];
    points.forEach((point) => this.note(point));
    this.draw();
  }

  add(point) {
    const last = this.points[this.points.length - 1];
    // The server counts from the beginning again, or its clock was changed.
    if (last && point.time < last.time) this.points = [];
    if (last && point.time === last.time) return;
    this.points.push(point);
    this.note(point);
    while (this.points[0].time < point.time - SPAN) this.points.shift();
    this.draw();
  }

  note(point) {
    // In the order in which they were first met, so that none changes its colour.
    Object.keys(point.refused).forEach((reason) => { if (!this.reasons.includes(reason)) this.reasons.push(reason); });
  }

  draw() {
    if (this.waiting || !this.points.length) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (this.points.length) this.charts.forEach((chart) => chart.draw(this.points, this.reasons));
    });
  }
}
