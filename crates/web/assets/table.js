/*
 * A table whose rows are updated in place. Rows keep their elements, so that a reader's focus,
 * selection and scroll position survive an update; a text is written only if it differs. Columns
 * are sorted by the buttons in their headings.
 *
 * All texts are set as text nodes: a name is never parsed as HTML.
 */

/** A new element with a class and a text. */
export function element(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** Sets a text, if it differs. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets an attribute, if it differs. */
export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Shows or hides an element. */
export function setShown(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

/**
 * Puts the children of `parent` in this order and removes all others. Only those that are at
 * another place move: a moved element loses the focus.
 */
export function arrange(parent, nodes) {
  const focused = document.activeElement;
  let next = parent.firstChild;
  const wanted = new Set(nodes);
  for (const node of nodes) {
    while (next && !wanted.has(next)) {
      const gone = next;
      next = next.nextSibling;
      gone.remove();
    }
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
  if (focused && focused !== document.activeElement && parent.contains(focused)) {
    focused.focus({ preventScroll: true });
  }
}

/** Compares two values of a column; unknown values are last in both directions. */
function compare(a, b, direction) {
  const unknown = (value) => value === null || value === undefined || Number.isNaN(value);
  if (unknown(a) || unknown(b)) return unknown(a) - unknown(b);
  if (typeof a === "string" && typeof b === "string") return direction * a.localeCompare(b);
  return direction * (a - b);
}

/** Shows a share of one as a bar in front of its text. */
export function barCell(cell, share, text, swatch) {
  let bar = cell.firstElementChild;
  if (!bar) {
    bar = element("span", "bar");
    bar.setAttribute("aria-hidden", "true");
    bar.append(element("i"));
    cell.append(bar, document.createTextNode(""));
  }
  const fill = bar.firstElementChild;
  if (fill.className !== swatch) fill.className = swatch;
  const width = `${Math.min(100, Math.max(0, 100 * (share ?? 0))).toFixed(1)}%`;
  if (fill.style.width !== width) fill.style.width = width;
  const label = cell.lastChild;
  if (label.data !== ` ${text}`) label.data = ` ${text}`;
}

/** A sortable table of rows with keys. */
export class Table {
  #table;
  #columns;
  #options;
  #sort;
  #rows = new Map();
  #body = document.createElement("tbody");
  #headings = new Map();
  #last = [];
  #empty = null;

  /**
   * `columns`: `{id, title, hint?, className?, optional?, value(row), text(row)}`, or instead of
   * `text` a function `fill(cell, row)`; `value` is what the column is sorted by. The first column
   * is the heading of its row. An optional one is hidden while no row has a value in it.
   * `options`: `{sort: {id, direction}, rowClass?(row), empty}`; `empty` is the text of a table
   * without rows.
   */
  constructor(table, columns, options) {
    this.#table = table;
    this.#columns = columns;
    this.#options = options;
    this.#sort = options.sort;
    table.append(this.#head(), this.#body);
    this.#showSort();
  }

  #head() {
    const row = document.createElement("tr");
    for (const column of this.#columns) {
      const heading = element("th", column.className ?? "");
      heading.scope = "col";
      const button = element("button", "", column.title);
      button.type = "button";
      if (column.hint) button.title = column.hint;
      button.addEventListener("click", () => this.#sortBy(column));
      heading.append(button);
      this.#headings.set(column.id, heading);
      row.append(heading);
    }
    const head = document.createElement("thead");
    head.append(row);
    return head;
  }

  #sortBy(column) {
    const isText = this.#last.some((row) => typeof column.value(row) === "string");
    const direction = this.#sort.id === column.id ? -this.#sort.direction : isText ? 1 : -1;
    this.#sort = { id: column.id, direction };
    this.#showSort();
    this.#show(this.#sorted(this.#last));
  }

  #showSort() {
    for (const [id, heading] of this.#headings) {
      if (id !== this.#sort.id) heading.removeAttribute("aria-sort");
      else setAttribute(heading, "aria-sort", this.#sort.direction < 0 ? "descending" : "ascending");
    }
  }

  /** Shows these rows; each has a `key`. `empty` is the text if there is none. */
  update(rows, empty = this.#options.empty) {
    this.#empty ??= this.#emptyRow();
    setText(this.#empty.firstElementChild, empty);
    this.#last = rows;
    this.#show(this.#isHeld() ? this.#inPlace(rows) : this.#sorted(rows));
  }

  /** True while a reader points at a row or is in it by keyboard: it must not move away. */
  #isHeld() {
    return this.#body.matches(":hover") || this.#body.querySelector(":focus-visible") !== null;
  }

  #sorted(rows) {
    const column = this.#columns.find(({ id }) => id === this.#sort.id) ?? this.#columns[0];
    const keyed = rows.map((row) => [column.value(row), row]);
    return keyed.sort(([a], [b]) => compare(a, b, this.#sort.direction)).map(([, row]) => row);
  }

  /** The rows in the order that is shown; new ones at the end. */
  #inPlace(rows) {
    const places = new Map([...this.#rows.keys()].map((key, place) => [key, place]));
    const place = (row) => places.get(row.key) ?? places.size;
    return [...rows].sort((a, b) => place(a) - place(b));
  }

  #show(rows) {
    const before = this.#rows;
    this.#rows = new Map();
    const isEmpty = (column) => rows.every((row) => (column.value(row) ?? null) === null);
    const hidden = this.#columns.map((column) => column.optional === true && isEmpty(column));
    this.#columns.forEach(({ id }, place) => setShown(this.#headings.get(id), !hidden[place]));
    const nodes = rows.map((row) => {
      const node = before.get(row.key) ?? this.#newRow();
      this.#rows.set(row.key, node);
      this.#fill(node, row);
      hidden.forEach((isHidden, place) => setShown(node.cells[place], !isHidden));
      return node;
    });
    if (nodes.length === 0) nodes.push(this.#empty);
    arrange(this.#body, nodes);
  }

  #newRow() {
    const node = document.createElement("tr");
    this.#columns.forEach((column, place) => {
      const cell = element(place === 0 ? "th" : "td", column.className ?? "");
      if (place === 0) cell.scope = "row";
      node.append(cell);
    });
    return node;
  }

  #fill(node, row) {
    const className = this.#options.rowClass?.(row) ?? "";
    if (node.className !== className) node.className = className;
    this.#columns.forEach((column, place) => {
      const cell = node.cells[place];
      if (column.fill) column.fill(cell, row);
      else setText(cell, column.text(row));
    });
  }

  #emptyRow() {
    const node = element("tr", "rest");
    const cell = element("td", "text fill", this.#options.empty);
    cell.colSpan = this.#columns.length;
    node.append(cell);
    return node;
  }
}
