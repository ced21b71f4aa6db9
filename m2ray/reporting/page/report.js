"use strict";
(() => {
  const table = document.getElementById("leaderboard-table");
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.number === undefined ? cell.textContent.trim() : Number(cell.dataset.number);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });

  const sort = (column) => {
    const header = headers[column];
    // Numbers start with the largest, texts with A; the third click restores the original order.
    const order = header.classList.contains("number") ? ["descending", "ascending"] : ["ascending", "descending"];
    const direction = order[order.indexOf(header.getAttribute("aria-sort")) + 1];
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    let rows = original;
    if (direction) {
      header.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      rows = [...original].sort((first, second) => {
        const [a, b] = [value(first, column), value(second, column)];
        // Empty cells come last in either direction.
        return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
      });
    }
    body.append(...rows);
  };
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => sort(column)));

  const form = document.getElementById("filter");
  const verdict = document.getElementById("verdict");
  const words = document.getElementById("words");
  const count = document.getElementById("count");
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of original) {
      const text = row.textContent.toLowerCase();
      const matches = (!verdict.value || row.dataset.verdict === verdict.value) && wanted.every((word) => text.includes(word));
      row.hidden = !matches;
      shown += matches;
    }
    count.value = `${shown} of ${original.length} shown`;
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) {
      target.open = true;
      target.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", openTarget);
  openTarget();
})();
