// Arrow keys move among the cells of a table, of which the Tab key reaches one.
function moveInTable(event) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const step = steps[event.key], cell = event.target.closest("tbody td, tbody th");
  if (!step || !cell) return;
  event.preventDefault();
  const row = cell.parentElement, rows = [...row.parentElement.children], column = [...row.children].indexOf(cell);
  const next = rows[rows.indexOf(row) + step[0]]?.children[column + step[1]], target = next?.tagName === "TH" ? next.querySelector("button") : next;
  if (!target) return;
  if (next.tagName === "TD") { for (const each of row.parentElement.querySelectorAll("td[tabindex='0']")) each.tabIndex = -1; next.tabIndex = 0; }
  target.focus();
}
