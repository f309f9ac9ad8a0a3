"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const viridis = [[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140], [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37]];
  const diverging = [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]];

  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function svg(name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // "W_q" in a sentence, with its q set lower.
  const marked = (text) => text.split(/([A-Z]_\w+)/).map((part, index) => index % 2 ? symbol(part) : part);

  const isolated = (text) => element("bdi", {}, text);
  const button = (text, act, attributes = {}) => { const node = element("button", { type: "button", ...attributes }, text); node.addEventListener("click", act); return node; };

  // "W_q" with its q set lower.
  function symbol(text) {
    const [letter, ...lower] = text.split("_");
    return element("span", { class: "symbol" }, letter, ...(lower.length ? [element("sub", {}, lower.join("_"))] : []));
  }

  // Arrays

  const decoded = new Map();
  function decode(numbers, where) {
    const text = numbers.values[where];
    if (!decoded.has(text)) {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      decoded.set(text, Array.from({ length: bytes.length / 4 }, (_, index) => new DataView(bytes.buffer).getFloat32(4 * index, true)));
    }
    return { shape: numbers.shapes[where], flat: decoded.get(text) };
  }

  // An array for a setting of the switches, by default the present one.
  function arrayOf(section, name, state = section.state) {
    const numbers = section.numbers[name];
    return decode(numbers, numbers.switches.map((each) => each + "=" + state[each]).join("&"));
  }

  const at = ({ shape, flat }, index) => flat[index.reduce((sum, each, axis) => sum * shape[axis] + each, 0)];
  const perHead = (section, name) => section.numbers[name].axes[0] === "head";
  const headOf = (section) => Number(section.state.head || 0);
  const whole = (section, name, row, column) => perHead(section, name) ? [headOf(section), row, column] : [row, column];

  function rowsOf(section, name, state = section.state) {
    const array = arrayOf(section, name, state), [rows, columns] = array.shape.slice(-2), start = perHead(section, name) ? Number(state.head) * rows * columns : 0;
    return Array.from({ length: rows }, (_, row) => array.flat.slice(start + row * columns, start + (row + 1) * columns));
  }

  function labelsOf(section, axis, size) {
    const named = ["query", "key", "token"].includes(axis) ? section.tokens : section.labels[axis];
    return named?.length === size ? named : Array.from({ length: size }, (_, index) => size === 1 ? "" : String(index));
  }

  // Equations and the arithmetic of their entries

  const taken = (section) => section.equations.filter((each) => Object.entries(each.when).every(([name, values]) => values.includes(section.state[name])));
  const equationOf = (section, name) => section.active.find((each) => each.result === name);

  function describe(section, name, index) {
    const array = arrayOf(section, name), result = at(array, index), equation = equationOf(section, name), note = section.numbers[name].note;
    if (!equation) return { result, sides: [], also: [], why: [Number.isNaN(result) ? "Masked: nothing is decided here." : (note ? note[0].toUpperCase() + note.slice(1) : "A number of the library") + "."] };
    const axes = section.numbers[name].axes.slice(-2);
    const shape = (which) => arrayOf(section, equation.operands[which]).shape;
    const operand = (which, place) => ({ array: equation.operands[which], which, index: place, x: at(arrayOf(section, equation.operands[which]), place) });
    const like = (which) => operand(which, shape(which).at(-1) === 1 && shape(which).at(-2) === 1 ? shape(which).map(() => 0) : index.slice(-shape(which).length));
    const row = (which) => Array.from({ length: shape(which).at(-1) }, (_, column) => operand(which, [...index.slice(0, -1), column]));
    const label = (axis, number) => labelsOf(section, axes[axis], array.shape.at(axis - 2))[number];
    const context = { spec: equation.spec, index, resultShape: array.shape, shape, operand, like, row, label, operands: () => equation.operands };
    return { result, also: [], why: [], equation, ...rules.write[equation.rule](context) };
  }

  function nameOf(section, name, index) {
    const axes = section.numbers[name].axes.slice(-2), shape = arrayOf(section, name).shape, node = element("strong", {}, symbol(section.numbers[name].symbol || name));
    const places = axes.map((axis, which) => [axis, labelsOf(section, axis, shape.at(which - 2))[index.at(which - 2)]]).filter(([axis, label]) => axis && label !== "");
    if (places.length) node.append(": ", ...places.flatMap(([axis, label], which) => [which ? ", " : "", axis + " ", isolated(/^\d+$/.test(label) ? label : "“" + label + "”")]));
    return node;
  }

  // The line of arithmetic; operands are buttons, which lead to where they come from.
  function arithmetic(section, name, description, follow) {
    const { sides, result, equation } = description, [digits, shown] = numbers.places(sides, result);
    const line = element("p", { class: "arithmetic" }), shownResult = equation ? numbers.format(result, shown) : numbers.text({ x: result }, 9);
    for (const side of sides) { line.append(...writeParts(side.parts, digits, follow), " = "); }
    line.append(element("output", {}, shownResult || "–"));
    return line;
  }

  function writeParts(parts, digits, follow) {
    let before = "";
    return parts.map((part) => {
      if (typeof part === "string") { before = part; return part; }
      const text = numbers.text(part, digits), wrapped = text.startsWith("-") && /[·+−] $/.test(before) ? "(" + text + ")" : text;
      before = "";
      if (part.made || !follow) return wrapped;
      return button(wrapped, () => follow(part), { class: "operand", "data-array": part.array, "data-index": part.index.join(), "aria-label": wrapped + ": where does it come from?" });
    });
  }

  // Colours

  function interpolate(stops, share) {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
    return stops[low].map((colour, index) => Math.round(colour + (stops[low + 1][index] - colour) * (place - low)));
  }

  function colours(number, kind, largest) {
    const rgb = kind === "weights" ? interpolate(viridis, largest ? number / largest : 0) : interpolate(diverging, .5 + (largest ? number / largest / 2 : 0));
    const light = rgb.map((c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    const luminance = .2126 * light[0] + .7152 * light[1] + .0722 * light[2];
    return ["rgb(" + rgb.join(",") + ")", luminance > .179 ? "#000" : "#fff"];
  }

  const largestIn = (rows) => Math.max(0, ...rows.flat().filter(Number.isFinite).map(Math.abs));

  // Matrices

  // Which entries of an array are masked: those whose equation, or an earlier one, masks them.
  function maskOf(section, name) {
    const equation = equationOf(section, name);
    if (!equation || !["mask", "zero", "softmax", "normalize", "dropout"].includes(equation.rule)) return null;
    return ["mask", "zero"].includes(equation.rule) ? rowsOf(section, equation.operands[1]) : maskOf(section, equation.operands[0]);
  }

  // Four decimals where there is room, else two; colours alone where not even these fit.
  const headWidth = (labels, wide) => labels.some((label) => label) ? Math.min(wide ? 100 : 64, 12 + 7 * Math.max(...labels.map((label) => [...label].length))) : 6;

  function layout(columns, labels, kind, wide, room, largest, integers) {
    const head = headWidth(labels, wide), each = (room - head) / columns;
    if (integers && wide) return { digits: 4, head, cell: Math.min(30, each) };
    if (wide && each >= 44) return { digits: 4, head, cell: Math.max(44, Math.min(largest, each)) };
    const least = kind === "weights" ? 25 : 31;
    return { digits: each >= least ? 2 : null, head, cell: Math.min(each, 42) };
  }

  const columnsOfIntegers = (rows) => rows[0].length > 1 && rows.flat().every(Number.isInteger);

  function matrix(section, name, { transposed = false, owner = false, which, room, wide, cell: widest = 54 }) {
    const shownNumbers = section.numbers[name], original = rowsOf(section, name), kind = shownNumbers.kind, largest = largestIn(original), mask = maskOf(section, name);
    const rows = transposed ? original[0].map((_, column) => original.map((row) => row[column])) : original;
    const axes = shownNumbers.axes.slice(-2), sizes = [original.length, original[0].length], lists = axes.map((axis, which) => labelsOf(section, axis, sizes[which]));
    const [left, top] = transposed ? [lists[1], lists[0]] : lists, size = layout(top.length, left, kind, wide, room, widest, columnsOfIntegers(original));
    const table = element("table", { role: "grid", class: "matrix" + (size.digits === 4 ? (size.cell < 52 ? " dense" : "") : size.digits === 2 ? " two" : " none"), "data-array": name, "aria-label": (shownNumbers.symbol || name).replace("_", " ") + ", " + sizes.join(" by ") });
    table.style.width = size.head + size.cell * top.length + "px";
    const choosing = owner && ["query", "token"].includes(axes[0]) && !transposed;
    const upright = top.some((label) => 7 * [...label].length > size.cell - 4);
    if (top.some((label) => label)) {
      const line = element("tr", {}, element("td", {}));
      line.firstChild.style.width = size.head + "px";
      line.append(...top.map((label) => element("th", { scope: "col", class: upright ? "upright" : undefined, title: label }, isolated(label))));
      table.append(element("thead", {}, line));
    }
    const body = element("tbody");
    rows.forEach((row, r) => {
      const header = element("th", { scope: "row", title: left[r] || undefined }, choosing ? button(isolated(left[r]), () => section.choose(r), { tabindex: "-1", "aria-label": "choose " + left[r] + " as the query" }) : isolated(left[r]));
      header.style.width = size.head + "px";
      const line = element("tr", {}, header);
      if (choosing) line.dataset.query = r;
      row.forEach((number, c) => {
        const [x, y] = transposed ? [c, r] : [r, c], text = numbers.format(number, size.digits ?? 4), hidden = !Number.isFinite(number) || (mask && !mask[x][y]);
        const cell = element("td", { role: "gridcell", tabindex: r + c ? "-1" : "0", "data-value": String(number), "data-place": name + "|" + whole(section, name, x, y).join(), "data-which": which, "data-row": choosing ? r : undefined }, size.digits === null ? "" : text);
        if (text.length > (size.digits === 2 ? 4 : 7)) cell.classList.add("long");
        if (size.digits === null || hidden) cell.setAttribute("aria-label", (text || "nothing") + (hidden ? ", masked" : ""));
        if (hidden) cell.className = "masked";
        else if (kind !== "plain") [cell.style.backgroundColor, cell.style.color] = colours(number, kind, largest);
        line.append(cell);
      });
      body.append(line);
    });
    table.append(body);
    const shape = arrayOf(section, name).shape, caption = element("figcaption", {}, symbol(shownNumbers.symbol || name), ...(transposed ? [element("sup", {}, "T")] : []));
    if (shape.slice(-2).some((each) => each > 1)) caption.append(element("span", { class: "shape" }, "(" + (transposed ? [...shape.slice(0, -2), shape.at(-1), shape.at(-2)] : shape).join(", ") + ")" + (perHead(section, name) ? ", head " + headOf(section) : "")));
    return element("figure", { class: "operand-matrix" }, table, caption);
  }

  // One equation: its matrices in a row, with signs between.
  function figure(section, equation, number) {
    const room = section.stage.clientWidth - 2, wide = innerWidth > 600;
    const signs = rules.signs[equation.rule], line = element("div", { class: "line" }), last = signs.at(-1);
    const transposed = equation.rule === "einsum" && equation.operands.length > 1 && ((terms) => terms[0].at(-1) === terms[1].at(-1))(equation.spec.split("->")[0].split(","));
    let shown = equation.operands.map((name, which) => [name, which]);
    if (equation.rule === "scale" && shown[2] && arrayOf(section, shown[2][0]).flat[0] === 1) shown = shown.slice(0, 2);
    // Cells as wide as lets all matrices stand in one line.
    const columns = [...shown.map(([name, which]) => [name, transposed && which === 1]), [equation.result, false]].map(([name, turned]) => {
      const shape = arrayOf(section, name).shape, axes = section.numbers[name].axes;
      const head = headWidth(labelsOf(section, axes.at(turned ? -1 : -2), shape.at(turned ? -1 : -2)), wide), cells = shape.at(turned ? -2 : -1);
      return columnsOfIntegers(rowsOf(section, name)) ? { head: head + 30 * cells, cells: 0 } : { head, cells };
    });
    const space = room - columns.reduce((sum, each) => sum + each.head, 0) - 22 * columns.length - signs.reduce((sum, sign) => sum + (/\w/.test(sign) ? 8 * sign.length + 14 : 14), 30);
    const cell = Math.max(44, Math.min(54, Math.floor(space / columns.reduce((sum, each) => sum + each.cells, 0))));
    if (signs[0]) line.append(element("span", { class: "sign word" }, signs[0]));
    shown.forEach(([name, which], position) => {
      if (position) line.append(element("span", { class: "sign" + (/\w/.test(signs[position]) ? " word" : "") }, signs[position]));
      line.append(matrix(section, name, { transposed: transposed && which === 1, owner: which === 0, which, room, wide, cell }));
    });
    if (last) line.append(element("span", { class: "sign word" }, last));
    line.append(element("span", { class: "sign" }, "="), matrix(section, equation.result, { owner: true, room, wide, cell }));
    const node = element("div", { class: "equation", role: "group", "aria-label": equation.name }, element("p", { class: "what" }, element("strong", {}, (number + 1) + " " + equation.name + ". "), ...marked(equation.text)), line);
    return node;
  }

  // A small picture of an array.
  function thumbnail(rows, kind, mask) {
    const largest = largestIn(rows), picture = svg("svg", { viewBox: "0 0 " + rows[0].length + " " + rows.length, preserveAspectRatio: "none", "aria-hidden": "true" });
    rows.forEach((row, r) => row.forEach((number, c) => {
      if (Number.isFinite(number) && !(mask && !mask[r][c])) picture.append(svg("rect", { x: c, y: r, width: 1, height: 1, fill: colours(number, kind === "plain" ? "weights" : kind, largest)[0], "data-value": String(number) }));
    }));
    return picture;
  }

  // The words, and arcs between them

  function arcs(section) {
    const place = section.arcsPlace, many = section.tokens.length, narrow = section.root.clientWidth / many < 10 + 8 * Math.max(...section.tokens.map((token) => [...token].length));
    section.words = section.tokens.map((token, index) => button("", () => section.choose(index), { role: "radio", class: "word", "data-query": index }));
    section.words.forEach((word, index) => word.append(element("span", {}, isolated(section.tokens[index])), element("small", {})));
    section.picture = svg("svg", { viewBox: "0 0 " + 100 * many + " 100", preserveAspectRatio: "none", role: "img" });
    const words = element("div", { class: "words" + (narrow ? " upright" : ""), role: "radiogroup", "aria-label": "Query: the word whose attention is shown" }, ...section.words);
    words.style.gridTemplateColumns = "repeat(" + many + ", minmax(0, 1fr))";
    words.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      section.choose((section.query + step + many) % many);
      section.words[section.query].focus();
    });
    const weightOf = (event) => { const word = event.pointerType === "mouse" && event.target.closest?.(".word"); return word && { array: section.arcs, index: whole(section, section.arcs, section.query, Number(word.dataset.query)) }; };
    words.addEventListener("pointerover", (event) => { const weight = section.equations.length && weightOf(event); if (weight) explain(section, weight); });
    words.addEventListener("pointerleave", () => { if (section.equations.length) explain(section, section.selected); });
    place.replaceChildren(section.picture, words);
  }

  function drawArcs(section) {
    if (!section.arcs) return;
    const weights = rowsOf(section, section.arcs)[section.query], largest = Math.max(...weights), many = weights.length, mask = maskOf(section, section.arcs);
    section.picture.setAttribute("aria-label", "Arcs from “" + section.tokens[section.query] + "”: " + section.tokens.map((token, index) => token + " " + numbers.format(weights[index])).join(", "));
    section.picture.replaceChildren(...weights.flatMap((weight, key) => {
      const from = 100 * section.query + 50, to = 100 * key + 50, rise = 25 + 105 * Math.abs(from - to) / (100 * many), share = largest ? weight / largest : 0;
      const bend = key === section.query ? "M" + (from - 14) + " 100 c -16 -46 44 -46 28 0" : "M" + from + " 100 C" + from + " " + (100 - rise) + " " + to + " " + (100 - rise) + " " + to + " 100";
      return weight > 0 ? [svg("path", { d: bend, "stroke-width": (.6 + 11 * share ** 2).toFixed(2), "stroke-opacity": (.25 + .7 * share).toFixed(2), "vector-effect": "non-scaling-stroke", "data-key": key, "data-value": String(weight) })] : [];
    }));
    section.words.forEach((word, index) => {
      word.setAttribute("aria-checked", String(index === section.query)); word.tabIndex = index === section.query ? 0 : -1;
      const isMasked = mask && !mask[section.query][index];
      word.querySelector("small").textContent = isMasked ? "–" : numbers.format(weights[index], section.root.clientWidth / many > 60 ? 4 : 2);
      word.setAttribute("aria-label", section.tokens[index] + (isMasked ? ", masked" : ", weight " + numbers.format(weights[index])));
    });
  }

  // A small picture of each head; a click chooses the head.
  function heads(section, place) {
    const switches = section.switches.filter((each) => ["layer", "head"].includes(each.name));
    if (!section.arcs || !switches.some((each) => each.name === "head") || !perHead(section, section.arcs)) return;
    let states = [{}];
    for (const each of switches) states = states.flatMap((state) => each.options.map(([value]) => ({ ...state, [each.name]: value })));
    const focused = [...place.children].indexOf(document.activeElement), mask = maskOf(section, section.arcs);
    place.replaceChildren(...states.map((state) => {
      const picture = thumbnail(rowsOf(section, section.arcs, { ...section.state, ...state }), "weights", mask), name = switches.map((each) => each.name + " " + state[each.name]).join(", ");
      const node = button(picture, () => { for (const each of switches) section.root.querySelector("[data-switch='" + each.name + "'] input[value='" + state[each.name] + "']").click(); }, { "aria-pressed": String(switches.every((each) => section.state[each.name] === state[each.name])) });
      node.append(element("span", {}, name));
      return node;
    }));
    place.children[focused]?.focus();
  }

  // Where a number comes from

  const keyOf = ({ array, index }) => array + "|" + index.join();

  function explain(section, place) {
    const description = describe(section, place.array, place.index), panel = section.panel, lit = new Set();
    const parts = [...description.sides.slice(0, 1).flatMap((side) => side.parts), ...description.also, ...description.why].filter((part) => part.array);
    // The same array may stand twice in an equation: a frame belongs to the operand, query's row or key's column.
    const here = description.equation === section.active[section.step];
    for (const part of parts) lit.add((here ? part.which : "") + "|" + keyOf(part));
    for (const cell of section.stage.querySelectorAll(".lit, .source")) cell.classList.remove("lit", "source");
    const open = section.boxes[section.step];
    if (open) for (const cell of open.querySelectorAll("td[data-place]")) {
      if (cell.dataset.place === keyOf(place)) cell.classList.add("lit");
      else if (lit.has((here ? cell.dataset.which : "") + "|" + cell.dataset.place)) cell.classList.add("source");
    }
    const follow = (part) => section.follow(part);
    const why = element("p", { class: "why" }, ...writeParts(description.why, 6, follow));
    if (description.equation && description.equation !== section.active[section.step]) why.append(...marked(description.equation.text));
    panel.replaceChildren(element("p", { class: "which" }, nameOf(section, place.array, place.index)), arithmetic(section, place.array, description, follow), why);
    const other = description.equation && description.equation !== section.active[section.step];
    section.open.textContent = other ? "Open step “" + description.equation.name + "”" : "Open its step";
    section.open.disabled = !other;
    section.back.disabled = !section.past.length;
    section.shown = place;
  }

  // Reserves the height of the longest explanation, so that nothing below moves.
  function reserve(section) {
    let longest = { length: -1 };
    for (const { result } of section.active) {
      const [rows, columns] = arrayOf(section, result).shape.slice(-2);
      for (const column of [0, columns - 1]) for (const row of new Set([0, section.query, rows - 1])) {
        const description = describe(section, result, whole(section, result, row, column)), line = arithmetic(section, result, description);
        const text = line.textContent + description.why.join("") + description.equation.text;
        if (text.length > longest.length) longest = { length: text.length, line: line.textContent, why: description.why.map((part) => part.array ? "0.000000" : part).join("") + description.equation.text };
      }
    }
    section.sizer.replaceChildren(element("p", { class: "which" }, "X"), element("p", { class: "arithmetic" }, longest.line + " 0.0000 · 0.0000 + 0.00 −∞"), element("p", { class: "why" }, longest.why + " and some more −∞.", symbol("W_q")));
  }

  // Saving the figure in view

  function save(name, picture) {
    const text = new XMLSerializer().serializeToString(picture);
    const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "image/svg+xml" })), download: name + ".svg" });
    document.body.append(link); link.click(); link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const letters = (text) => 7.5 * [...text].length;

  function pictureOf(box) {
    const picture = svg("svg", { xmlns: "http://www.w3.org/2000/svg", "font-family": "sans-serif", "font-size": 12 });
    let x = 10, deepest = 0;
    const text = (words, left, y, anchor = "middle", fill = "#222") => picture.append(svg("text", { x: left, y, "text-anchor": anchor, fill }, words));
    const title = box.querySelector(".what").textContent;
    text(title, 10, 20, "start");
    for (const part of box.querySelector(".line").children) {
      if (part.classList.contains("sign")) { const width = letters(part.textContent) + 14; text(part.textContent, x + width / 2, 90); x += width; continue; }
      const table = part.querySelector("table"), side = Math.max(0, ...[...table.querySelectorAll("tbody th")].map((each) => letters(each.textContent))) + 8;
      const width = Math.max(54, ...[...table.querySelectorAll("thead th")].map((each) => letters(each.textContent) + 8)), columns = table.tBodies[0].rows[0].cells.length - 1;
      [...table.querySelectorAll("thead th")].forEach((each, c) => text(each.textContent, x + side + (c + .5) * width, 50));
      [...table.tBodies[0].rows].forEach((row, r) => {
        text(row.cells[0].textContent, x + side - 6, 72 + 24 * r, "end");
        [...row.cells].slice(1).forEach((cell, c) => {
          picture.append(svg("rect", { x: x + side + c * width, y: 56 + 24 * r, width, height: 24, fill: cell.style.backgroundColor || "#ddd", stroke: "#999" }));
          text(numbers.format(Number(cell.dataset.value)), x + side + (c + .5) * width, 72 + 24 * r, "middle", cell.style.color || "#333");
        });
      });
      const bottom = 56 + 24 * table.tBodies[0].rows.length;
      text(part.querySelector("figcaption").textContent, x + side + columns * width / 2, bottom + 20);
      deepest = Math.max(deepest, bottom + 30); x += side + columns * width + 10;
    }
    const wide = Math.max(x, letters(title) + 20);
    for (const [key, value] of Object.entries({ viewBox: "0 0 " + wide + " " + deepest, width: wide, height: deepest })) picture.setAttribute(key, value);
    return picture;
  }

  // Sections

  function radios(section, { name, label, options }) {
    const row = element("div", { class: "options" });
    for (const [value, text] of options) {
      const input = element("input", { type: "radio", name: section.id + "-" + name, value });
      input.checked = value === section.state[name];
      input.addEventListener("change", () => { section.state[name] = value; section.past = []; rebuild(section); });
      row.append(element("label", {}, input, element("span", {}, isolated(text))));
    }
    return element("fieldset", { "data-switch": name }, element("legend", {}, label), row);
  }

  // Draw everything again: for another setting of the switches, or another width.
  function rebuild(section) {
    const was = section.active?.[section.step]?.result, mode = section.active?.[section.step]?.name;
    section.active = taken(section);
    heads(section, section.root.querySelector(".heads"));
    if (section.arcs) arcs(section);
    drawArcs(section);
    if (!section.active.length) return;
    const again = [section.active.findIndex((each) => each.result === was && each.name === mode), section.active.findIndex((each) => each.result === was), section.active.findIndex((each) => each.name === mode)].find((each) => each >= 0);
    section.step = Math.min(was === undefined ? section.opened : again ?? section.step, section.active.length - 1);
    section.boxes = section.active.map((equation, number) => figure(section, equation, number));
    section.stage.replaceChildren(...section.boxes);
    section.thumbs = section.active.map((equation, number) => {
      const node = button(thumbnail(rowsOf(section, equation.result), section.numbers[equation.result].kind, maskOf(section, equation.result)), () => section.go(number), { title: equation.text });
      node.append(element("span", {}, symbol(section.numbers[equation.result].symbol || equation.result), element("small", {}, equation.name)));
      return node;
    });
    section.strip.replaceChildren(...section.thumbs.map((node) => element("li", {}, node)));
    reserve(section);
    section.go(section.step);
  }

  function markQuery(section) {
    for (const row of section.stage.querySelectorAll("tr[data-query]")) row.classList.toggle("chosen", Number(row.dataset.query) === section.query);
  }

  function fill(section) {
    section.root = document.getElementById(section.id);
    section.state = Object.fromEntries(section.switches.map((each) => [each.name, each.initial]));
    section.past = [];
    const find = (name) => section.root.querySelector(name);
    find(".controls").append(...section.switches.map((each) => radios(section, each)));
    section.arcsPlace = find(".arcs");
    section.stage = element("div", { class: "stage" });
    section.strip = element("ol", { class: "strip" });
    section.panel = element("div", { class: "panel", "aria-live": "polite" });
    section.sizer = element("div", { class: "panel sizer", "aria-hidden": "true" });
    section.back = button("Back", () => { const [step, place] = section.past.pop(); section.step = step; section.show(place); });
    section.open = button("Open its step", () => section.follow(section.selected));
    section.previous = button("Previous", () => section.go(section.step - 1));
    section.next = button("Next step", () => section.go(section.step + 1));

    section.choose = (query) => {
      section.query = query;
      drawArcs(section);
      if (!section.active.length) return;
      markQuery(section);
      const { array, index } = section.selected, axis = section.numbers[array].axes.at(-2), column = index.at(-1);
      if (["query", "token"].includes(axis)) section.select({ array, index: whole(section, array, query, column) });
    };
    // Open a step, and one of its numbers.
    section.show = (place) => {
      section.boxes.forEach((box, number) => { box.classList.toggle("open", number === section.step); box.inert = number !== section.step; });
      section.thumbs.forEach((thumb, number) => number === section.step ? thumb.setAttribute("aria-current", "step") : thumb.removeAttribute("aria-current"));
      section.previous.setAttribute("aria-disabled", String(section.step === 0));
      section.next.setAttribute("aria-disabled", String(section.step === section.active.length - 1));
      markQuery(section);
      section.select(place);
    };
    section.go = (step) => {
      section.step = Math.min(Math.max(step, 0), section.active.length - 1);
      const { result } = section.active[section.step], [rows] = arrayOf(section, result).shape.slice(-2);
      section.show({ array: result, index: whole(section, result, Math.min(section.query, rows - 1), 0) });
    };
    section.select = (place) => { section.selected = place; explain(section, place); };
    section.follow = (part) => {
      const equation = equationOf(section, part.array), step = section.active.indexOf(equation);
      section.past.push([section.step, section.selected]);
      if (equation && part.array.length && step !== section.step) section.step = step;
      section.show({ array: part.array, index: part.index });
      section.boxes[section.step].querySelector("td[data-place='" + CSS.escape(keyOf(part)) + "']")?.focus({ preventScroll: true });
    };
    if (!section.equations.length) { find(".view").hidden = false; return rebuild(section); }

    const placeOf = (target) => {
      const cell = target.closest?.("td[data-place]");
      if (!cell) return null;
      const [array, index] = cell.dataset.place.split("|");
      return { cell, place: { array, index: index.split(",").map(Number) } };
    };
    const selectCell = (event) => {
      const found = placeOf(event.target);
      if (!found) return;
      section.select(found.place);
      if (found.cell.dataset.row !== undefined && Number(found.cell.dataset.row) !== section.query) { section.query = Number(found.cell.dataset.row); drawArcs(section); markQuery(section); }
    };
    section.stage.addEventListener("focusin", selectCell);
    section.stage.addEventListener("click", selectCell);
    section.stage.addEventListener("pointerover", (event) => { const found = event.pointerType === "mouse" && placeOf(event.target); if (found) explain(section, found.place); });
    section.stage.addEventListener("pointerleave", () => { if (section.shown !== section.selected) explain(section, section.selected); });
    section.stage.addEventListener("keydown", moveInTable);
    const saveIt = button("Save figure as SVG", () => save(section.id + " " + section.active[section.step].name, pictureOf(section.boxes[section.step])), { class: "save" });
    find(".view").append(section.strip, element("div", { class: "steps" }, section.previous, section.next, saveIt), section.stage,
      element("div", { class: "origin", role: "group", "aria-label": "Where this number comes from" }, section.panel, section.sizer, element("div", { class: "trail" }, section.back, section.open)));
    find(".view").hidden = false;
    rebuild(section);
  }

  for (const part of document.querySelectorAll(".needs-script")) part.hidden = false;
  for (const section of data.sections) fill(section);

  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) for (const section of data.sections) rebuild(section);
    width = innerWidth;
  });

  const theme = document.getElementById("theme"), root = document.documentElement;
  if (theme) {
    const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const label = () => { theme.textContent = dark() ? "Light colours" : "Dark colours"; };
    label();
    theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  }
  // In a notebook's frame, the frame takes the height of the page.
  try { if (window.frameElement) window.frameElement.style.height = document.documentElement.scrollHeight + 8 + "px"; } catch { /* a frame of another origin keeps its height */ }
})();
