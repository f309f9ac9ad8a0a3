"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const viridis = [[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140], [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37]];
  const diverging = [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]];

  // Numbers become text here only, as `format_number` of page.py formats them.
  function formatNumber(number) {
    if (!Number.isFinite(number)) return number < 0 ? "−∞" : "∞";
    const text = number.toFixed(4);
    return /^-[0.]*$/.test(text) ? text.slice(1) : text;
  }

  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function svg(name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function isolated(text) { const node = element("bdi"); node.textContent = text; return node; }

  function decode(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), view = new DataView(bytes.buffer);
    return Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
  }

  // An array as nested lists, for a setting of the switches: by default the present one.
  function arrayOf(section, name, state = section.state) {
    const numbers = section.numbers[name];
    const where = numbers.switches.map((name) => name + "=" + state[name]).join("&");
    let flat = decode(numbers.values[where]);
    for (const size of numbers.shapes[where].slice(1).reverse()) {
      const groups = [];
      for (let start = 0; start < flat.length; start += size) groups.push(flat.slice(start, start + size));
      flat = groups;
    }
    return flat;
  }

  const perHead = (section, name) => section.numbers[name].axes[0] === "head";
  const arrayOfHead = (section, name) => perHead(section, name) ? arrayOf(section, name)[section.state.head] : arrayOf(section, name);

  function labelsOf(section, axis, size) {
    const named = section.labels[axis];
    return named?.length === size ? named : Array.from({ length: size }, (_, index) => (axis === "head" ? "head " : "") + index);
  }

  function interpolate(stops, share) {
    const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((colour, index) => Math.round(colour + (stops[low + 1][index] - colour) * (at - low)));
  }

  function colours(number, kind, largest) {
    const rgb = kind === "weights" ? interpolate(viridis, largest ? number / largest : 0) : interpolate(diverging, .5 + (largest ? number / largest / 2 : 0));
    const light = rgb.map((c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    const luminance = .2126 * light[0] + .7152 * light[1] + .0722 * light[2];
    return ["rgb(" + rgb.join(",") + ")", luminance > .179 ? "#000" : "#fff"];
  }

  const largestIn = (rows) => Math.max(...rows.flat().filter(Number.isFinite).map(Math.abs));

  function table(section, title, rows, axes, kind, mask, chosen, largest) {
    const columns = labelsOf(section, axes[1], rows[0].length), labels = labelsOf(section, axes[0], rows.length);
    const corner = axes[0] === "query" && axes[1] === "key" && rows.length > 1 ? "query ↓ key →" : "";
    const head = element("tr", {}, element("td", {}, corner), ...columns.map((name) => element("th", { scope: "col" }, isolated(name))));
    const node = element("table", {}, element("caption", {}, title), element("thead", {}, head));
    const body = element("tbody");
    rows.forEach((row, r) => {
      const line = element("tr", {}, element("th", { scope: "row" }, isolated(labels[r])));
      if (r === chosen) line.className = "chosen";
      row.forEach((number, c) => {
        const cell = element("td", { "data-value": String(number), tabindex: r + c ? "-1" : "0" }, formatNumber(number));
        if ((mask && !mask[r][c]) || !Number.isFinite(number)) { cell.className = "masked"; cell.setAttribute("aria-label", formatNumber(number) + ", masked"); }
        else if (kind !== "plain") [cell.style.backgroundColor, cell.style.color] = colours(number, kind, largest);
        line.append(cell);
      });
      body.append(line);
    });
    node.append(body);
    node.addEventListener("keydown", moveInTable);
    return node;
  }

  function moveInTable(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = steps[event.key], cell = event.target.closest("tbody td");
    if (!step || !cell) return;
    const row = cell.parentElement, rows = [...row.parentElement.children], column = [...row.children].indexOf(cell);
    const next = rows[rows.indexOf(row) + step[0]]?.children[column + step[1]];
    if (next?.tagName !== "TD") return;
    cell.tabIndex = -1; next.tabIndex = 0; next.focus(); event.preventDefault();
  }

  function save(name, picture) {
    const text = new XMLSerializer().serializeToString(picture);
    const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "image/svg+xml" })), download: name + ".svg" });
    document.body.append(link); link.click(); link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function pictureOfTables(tables) {
    const picture = svg("svg", { xmlns: "http://www.w3.org/2000/svg", "font-family": "sans-serif", "font-size": 12 });
    const letters = (text) => 7.5 * [...text].length;
    let top = 20, wide = 0;
    for (const each of tables) {
      const cells = [...each.rows].map((row) => [...row.cells].map((cell) => cell.textContent));
      const side = 12 + Math.max(...cells.map((row) => letters(row[0]))), width = Math.max(62, ...cells[0].slice(1).map((text) => 8 + letters(text)));
      wide = Math.max(wide, side + width * (cells[0].length - 1) + 8, 16 + 1.1 * letters(each.caption.textContent));
      picture.append(svg("text", { x: 8, y: top, "font-weight": "bold" }, each.caption.textContent));
      [...each.rows].forEach((row, r) => [...row.cells].forEach((cell, c) => {
        const x = side + width * (c - 1), y = top + 8 + 24 * r, body = cell.tagName === "TD" && r;
        if (body) picture.append(svg("rect", { x, y, width, height: 24, fill: cell.style.backgroundColor || "#ddd", stroke: "#999" }));
        picture.append(svg("text", { x: c ? x + width / 2 : side - 6, y: y + 16, "text-anchor": c ? "middle" : "end", fill: body ? cell.style.color || "#333" : "#333" }, cell.textContent));
      }));
      top += 24 * each.rows.length + 40;
    }
    picture.setAttribute("viewBox", "0 0 " + wide + " " + top); picture.setAttribute("width", wide); picture.setAttribute("height", top);
    return picture;
  }

  function saveButton(name, make) {
    const button = element("button", { type: "button" }, "Save as SVG");
    button.setAttribute("aria-label", "Save as SVG: " + name);
    button.addEventListener("click", () => save(name, make()));
    return button;
  }

  function arcs(section, place) {
    const weights = arrayOfHead(section, section.arcs)[section.query], chosen = data.tokens[section.query];
    const widths = data.tokens.map((token) => Math.max(Math.min(Math.max(place.clientWidth / data.tokens.length, 46), 130), 8 + 8 * [...token].length)), ends = [0];
    widths.forEach((width) => ends.push(ends.at(-1) + width));
    const middle = (index) => ends[index] + widths[index] / 2, wide = ends.at(-1), base = 130;
    const summary = data.tokens.map((token, index) => token + " " + formatNumber(weights[index])).join(", ");
    const picture = svg("svg", { viewBox: "0 0 " + wide + " 190", width: wide, height: 190, role: "img", "aria-label": "Arcs from “" + chosen + "”: " + summary });
    weights.forEach((weight, key) => {
      const from = middle(section.query), to = middle(key), share = Math.min(Math.max(weight, 0), 1), rise = 30 + 130 * Math.abs(from - to) / wide;
      const bend = key === section.query ? "M" + (from - 8) + " " + base + " c -22 -46 38 -46 16 0" : "M" + from + " " + base + " C" + from + " " + (base - rise) + " " + to + " " + (base - rise) + " " + to + " " + base;
      if (share > 0) picture.append(svg("path", { d: bend, "stroke-width": .5 + 9 * share, "stroke-opacity": .25 + .75 * share, "data-key": key, "data-value": String(weight) }));
      picture.append(svg("text", { x: to, y: base + 20, "text-anchor": "middle", "font-size": 14, class: key === section.query ? "chosen" : "" }, data.tokens[key]));
      picture.append(svg("text", { x: to, y: base + 40, "text-anchor": "middle", "font-size": 11, class: "amount" }, formatNumber(weight)));
    });
    const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": section.root.querySelector("h2").textContent + ": arcs" }, picture);
    place.replaceChildren(scroll, saveButton(section.id + " arcs", () => {
      const copy = picture.cloneNode(true);
      copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
      for (const path of copy.querySelectorAll("path")) { path.setAttribute("fill", "none"); path.setAttribute("stroke", "#0b57a4"); }
      for (const text of copy.querySelectorAll("text")) text.setAttribute("font-family", "sans-serif");
      return copy;
    }));
    // Scroll to show both ends of the strongest arc, or else its start.
    const from = middle(section.query), to = middle(weights.indexOf(Math.max(...weights)));
    scroll.scrollLeft = (Math.abs(from - to) < scroll.clientWidth - 60 ? (from + to) / 2 : from) - scroll.clientWidth / 2;
  }

  // A small picture of each head; a click chooses the head.
  function heads(section, place) {
    const switches = section.switches.filter((each) => ["layer", "head"].includes(each.name));
    if (!switches.length) return;
    let states = [{}];
    for (const each of switches) states = states.flatMap((state) => each.options.map(([value]) => ({ ...state, [each.name]: value })));
    const focused = [...place.children].indexOf(document.activeElement);
    place.replaceChildren(...states.map((state) => {
      const rows = arrayOf(section, section.arcs, { ...section.state, ...state })[state.head], side = 84 / rows.length, name = switches.map((each) => each.name + " " + state[each.name]).join(", ");
      const picture = svg("svg", { viewBox: "0 0 84 84", width: 84, height: 84, "aria-hidden": "true" });
      rows.forEach((row, r) => row.forEach((weight, c) => {
        if (c <= r) picture.append(svg("rect", { x: c * side, y: r * side, width: side, height: side, fill: colours(weight, "weights", 1)[0], "data-value": String(weight) }));
      }));
      const button = element("button", { type: "button", "aria-pressed": String(switches.every((each) => section.state[each.name] === state[each.name])) }, picture, element("span", {}, name));
      button.addEventListener("click", () => { for (const each of switches) section.root.querySelector("[data-switch='" + each.name + "'] input[value='" + state[each.name] + "']").click(); });
      return button;
    }));
    place.children[focused]?.focus();
  }

  function stepRows(section, step) {
    const axes = section.numbers[step.array].axes.filter((axis) => axis !== "head"), rows = arrayOfHead(section, step.array)[section.query];
    return axes.length === 3 ? [rows, axes.slice(1)] : [[rows], [axes[0], axes[1]]];
  }

  function stepper(section) {
    const step = section.steps[section.step], chosen = data.tokens[section.query];
    const [rows, axes] = stepRows(section, step), columns = labelsOf(section, axes[1], rows[0].length);
    section.stepButtons.forEach((button, index) => index === section.step ? button.setAttribute("aria-current", "step") : button.removeAttribute("aria-current"));
    // The attribute "disabled" would take the keyboard's focus away.
    section.back.setAttribute("aria-disabled", String(section.step === 0));
    section.next.setAttribute("aria-disabled", String(section.step === section.steps.length - 1));
    const node = table(section, "“" + chosen + "”: " + step.name, rows, axes, /weight|softmax|dropout/.test(step.name) && rows.length === 1 ? "weights" : "scores", null, -1, largestIn(rows));
    if (rows.length === 1) node.querySelector("tbody th").replaceChildren(isolated(chosen));
    section.stepTable.replaceChildren(node);
    const numbers = rows.length === 1 ? ": " + rows[0].map((number, index) => columns[index] + " " + formatNumber(number)).join(", ") : "";
    section.live.textContent = "Step " + (section.step + 1) + " of " + section.steps.length + ", " + step.name + ": " + step.text + numbers + ".";
  }

  function figures(section) {
    section.figures.forEach((figure, index) => {
      const place = section.root.querySelector("[data-figure='" + index + "']"), numbers = section.numbers[figure.array];
      const array = arrayOf(section, figure.array), axes = numbers.axes.slice(-2), many = numbers.axes.length === 3;
      const mask = figure.mask ? arrayOf(section, figure.mask) : null, titles = many ? labelsOf(section, numbers.axes[0], array.length) : [];
      const chosen = ["query", "token"].includes(axes[0]) ? section.query : -1;
      const tables = (many ? array : [array]).map((rows, each) => table(section, many ? figure.title + ", " + titles[each] : figure.title, rows, axes, figure.kind, mask, chosen, largestIn(many ? array.flat() : array)));
      const scrolls = tables.map((each) => element("div", { class: "scroll" }, each));
      place.replaceChildren(element("div", { class: "small" }, ...scrolls), saveButton(section.id + " " + figure.title, () => pictureOfTables(tables)));
    });
  }

  function update(section) { heads(section, section.root.querySelector(".heads")); arcs(section, section.root.querySelector(".arcs")); stepper(section); figures(section); }

  function radios(section, legend, name, options, checked, choose) {
    const row = element("div", { class: "options" });
    for (const [value, label] of options) {
      const input = element("input", { type: "radio", name: section.id + "-" + name, value });
      input.checked = value === checked;
      input.addEventListener("change", () => { choose(value); update(section); });
      const text = element("span", {}, isolated(label));
      row.append(element("label", {}, input, text));
    }
    return element("fieldset", { "data-switch": name }, element("legend", {}, legend), row);
  }

  for (const section of data.sections) {
    section.root = document.getElementById(section.id);
    section.query = data.query; section.step = 0;
    section.state = Object.fromEntries(section.switches.map((each) => [each.name, each.initial]));
    const controls = section.root.querySelector(".controls");
    const tokens = data.tokens.map((token, index) => [String(index), token]);
    controls.append(radios(section, "Query: the token whose attention is shown", "query", tokens, String(section.query), (value) => { section.query = Number(value); }));
    for (const each of section.switches) controls.append(radios(section, each.label, each.name, each.options, section.state[each.name], (value) => { section.state[each.name] = value; }));
    const move = (to) => { section.step = Math.min(Math.max(to, 0), section.steps.length - 1); stepper(section); };
    section.back = element("button", { type: "button" }, "Back"); section.next = element("button", { type: "button" }, "Next");
    section.back.addEventListener("click", () => move(section.step - 1)); section.next.addEventListener("click", () => move(section.step + 1));
    section.stepButtons = section.steps.map((step, index) => { const button = element("button", { type: "button" }, step.name); button.addEventListener("click", () => move(index)); return button; });
    section.live = element("p", { "aria-live": "polite" }); section.stepTable = element("div", { class: "scroll" });
    const list = element("ol", {}, ...section.stepButtons.map((button) => element("li", {}, button)));
    section.root.querySelector(".stepper").append(element("div", { class: "step" }, section.back, list, section.next), section.live, section.stepTable);
    for (const part of section.root.querySelectorAll(".needs-script")) part.hidden = false;
    update(section);
  }

  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) for (const section of data.sections) arcs(section, section.root.querySelector(".arcs"));
    width = innerWidth;
  });

  const theme = document.getElementById("theme"), root = document.documentElement;
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { theme.textContent = dark() ? "Light colours" : "Dark colours"; };
  theme.hidden = false; label();
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
})();
