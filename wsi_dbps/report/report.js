// The table of slides: sorted by a click on a column, filtered by a word. Without this script it is all there, worst first.
"use strict";
(() => {
  const SHOWN = 30;
  const table = document.getElementById("slide-table");
  if (!table) return;
  const [tools, filter, all, count] = ["tools", "filter", "all", "count"].map((id) => document.getElementById("slide-" + id));
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map((row) => ({
    row,
    cells: [...row.cells].map((cell) => cell.firstChild ? cell.firstChild.textContent.trim() : ""),
    text: row.textContent.toLowerCase(),
  }));
  const words = new Intl.Collator("en", { numeric: true });
  const number = (text) => Number(text.replaceAll(",", ""));
  let whole = false;

  function show() {
    const wanted = filter.value.trim().toLowerCase();
    let found = 0, shown = 0;
    for (const { row, text } of rows) {
      const fits = text.includes(wanted);
      found += fits;
      row.hidden = !fits || (!whole && shown >= SHOWN);
      shown += !row.hidden;
    }
    count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} slides shown`;
    all.hidden = found <= SHOWN;
    all.textContent = whole ? `Show the first ${SHOWN}` : `Show all ${found.toLocaleString("en")}`;
  }

  function sort(column, descending) {
    const numeric = rows.every(({ cells }) => !Number.isNaN(number(cells[column])));
    const compare = numeric ? (a, b) => number(a) - number(b) : words.compare;
    rows.sort((a, b) => (descending ? -1 : 1) * compare(a.cells[column], b.cells[column]));
    heads.forEach((head, i) => i === column
      ? head.setAttribute("aria-sort", descending ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
    show();
    body.append(...rows.map(({ row }) => row));
  }

  function sortByAddress() { // report.html#sort=probability,descending
    const [key, way] = (location.hash.match(/^#sort=(.*)$/) || ["", ""])[1].split(",");
    const column = heads.findIndex((head) => head.dataset.key === key);
    if (column >= 0) sort(column, way === "descending");
    return column >= 0;
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      sort(column, descending);
      try { history.replaceState(null, "", `#sort=${head.dataset.key},${descending ? "descending" : "ascending"}`); } catch { }
    });
    head.replaceChildren(button);
  });
  filter.addEventListener("input", show);
  all.addEventListener("click", () => { whole = !whole; show(); });
  addEventListener("hashchange", sortByAddress);
  tools.hidden = false;
  if (!sortByAddress()) sort(0, false);
})();
