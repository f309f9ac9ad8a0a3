// Tables of words and numbers: each cell says how its number is computed, or where it comes from.
for (const panel of document.querySelectorAll(".origin.of-tables")) {
  const place = panel.previousElementSibling, cells = [...place.querySelectorAll("td[data-note]")], [shown, sizer] = panel.children;
  const paragraph = (kind, ...parts) => { const node = document.createElement("p"); node.className = kind; node.append(...parts); return node; };
  const made = (name, text) => { const node = document.createElement(name); node.textContent = text; return node; };
  let chosen = cells[0];

  function lines(cell) {
    const table = cell.closest("table"), { arithmetic, note } = cell.dataset, words = cell.textContent.split(" "), number = words.pop();
    const column = table.tHead.rows[0].cells[cell.cellIndex].textContent, row = cell.parentElement.cells[0].textContent;
    const line = arithmetic ? [arithmetic + " = ", made("output", number)] : [made("output", cell.textContent)];
    return [paragraph("which", made("strong", column), ": " + row + (arithmetic && words.length ? ", " + words.join(" ") : "")), paragraph("arithmetic", ...line), paragraph("why", note ? note[0].toUpperCase() + note.slice(1) + "." : "")];
  }

  function explain(cell) {
    for (const each of cells) each.classList.toggle("lit", each === cell);
    shown.replaceChildren(...lines(cell));
  }

  const cellOf = (event) => event.target.closest?.("td[data-note]");
  const choose = (event) => { const cell = cellOf(event); if (cell) explain(chosen = cell); };
  place.addEventListener("click", choose);
  place.addEventListener("focusin", choose);
  place.addEventListener("pointerover", (event) => { const cell = event.pointerType === "mouse" && cellOf(event); if (cell) explain(cell); });
  place.addEventListener("pointerleave", () => explain(chosen));
  place.addEventListener("keydown", moveInTable);
  // Room for the longest explanation, so that nothing below moves.
  const longest = cells.reduce((a, b) => (b.dataset.arithmetic + b.dataset.note).length > (a.dataset.arithmetic + a.dataset.note).length ? b : a);
  sizer.replaceChildren(...lines(longest));
  explain(chosen);
}
