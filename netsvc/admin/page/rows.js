// Keeps one row for each thing that is shown, and changes only what has changed.

export function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

export function cell(row, name, label) {
  const node = make("td", name);
  if (label) node.dataset.label = label;
  row.append(node);
  return node;
}

export function number(node, value, text) {
  set(node, text);
  node.classList.toggle("zero", !value);
}

const MOST_HELD = 200;          // rows, while none may go

export class Rows {
  constructor(parent, build, fill, tag = "tr") {
    Object.assign(this, { parent, build, fill, tag, rows: new Map() });
  }

  show(items, key, held = false) {
    const seen = new Set();
    let next = this.parent.querySelector(":scope > :not(thead)");
    for (const item of items) {
      const name = key(item);
      seen.add(name);
      let row = this.rows.get(name);
      if (!row) {
        // In an hour, a pointer that rests in the table passes over many of them.
        if (held && this.rows.size >= MOST_HELD) continue;
        row = document.createElement(this.tag);
        this.build(row, item);
        this.rows.set(name, row);
        this.parent.insertBefore(row, held ? null : next);
      } else if (!held && row === next) {
        next = row.nextElementSibling;
      } else if (!held) {
        this.parent.insertBefore(row, next);
      }
      row.classList.remove("gone");
      this.fill(row, item);
    }
    for (const [name, row] of this.rows) {
      if (seen.has(name)) continue;
      // Nothing moves under a finger, or away from the keyboard.
      if (held) { row.classList.add("gone"); continue; }
      row.remove();
      this.rows.delete(name);
    }
  }
}
