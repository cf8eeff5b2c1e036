
"use strict";
(function () {
  function value(row, column, numeric) {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    return numeric ? -Infinity : cell.textContent;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a === b ? 0 : a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  function sort(table, column, head) {
    const numeric = head.classList.contains("n");
    const up = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") !== "ascending" : !numeric;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = Array.from(table.tBodies[0].rows, (row) => [value(row, column, numeric), row]);
    rows.sort((a, b) => (up ? compare(a[0], b[0]) : compare(b[0], a[0])));
    table.tBodies[0].append(...rows.map((row) => row[1]));
  }

  for (const table of document.querySelectorAll(".ksm-eval table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column, head));
      head.append(button);
    });
  }

  for (const block of document.querySelectorAll(".ksm-eval .steps pre")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", () => {
      getSelection().selectAllChildren(block);
      const done = () => { button.textContent = "Copied"; };
      if (navigator.clipboard) {
        navigator.clipboard.writeText(block.textContent).then(done, () => {});
      } else if (document.execCommand("copy")) {
        done();
      }
    });
    block.after(button);
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll(".ksm-eval details")) details.open = true;
  });
})();
