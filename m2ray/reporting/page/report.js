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

  const data = document.getElementById("answers-data");
  if (data) {
    const runs = JSON.parse(data.textContent);
    const get = (name) => document.getElementById(`answers-${name}`);
    const [run, condition, outcome, text] = ["run", "condition", "outcome", "words"].map(get);
    const tableOfAnswers = get("table").tBodies[0];
    const SHOWN = 50;
    const show = () => {
      const wanted = text.value.toLowerCase();
      const all = runs[run.value].answers;
      const found = all.filter(([episode, name, answer, right]) =>
        (!condition.value || name === condition.value) && (!outcome.value || right === Number(outcome.value)) &&
        `${episode} ${answer}`.toLowerCase().includes(wanted));
      tableOfAnswers.replaceChildren(...found.slice(0, SHOWN).map(([episode, name, answer, right]) => {
        const row = document.createElement("tr");
        for (const cell of [episode, name, answer, right ? "right" : "wrong"]) row.insertCell().textContent = cell;
        row.lastElementChild.className = right ? "verdict pass" : "verdict fail";
        return row;
      }));
      const cut = found.length > SHOWN ? `, the first ${SHOWN} shown` : "";
      get("count").value = `${found.length} of ${all.length} answers${cut}`;
    };
    get("filter").hidden = false;
    get("filter").addEventListener("input", show);
    get("filter").addEventListener("submit", (event) => event.preventDefault());
    show();
  }

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
