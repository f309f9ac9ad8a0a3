// The rules of `rules.py`, entry by entry. A rule returns sides, which are equal, and why. A side is its parts, text and
// operands, and a function that evaluates it from the operands as they are shown.
const rules = (() => {
  const side = (parts, value) => ({ parts, value });
  const between = (groups, sign) => groups.flatMap((group, index) => index ? [sign, ...group] : group);
  const add = (numbers) => numbers.reduce((sum, number) => sum + number, 0);
  const same = (part) => [side([part], (v) => v(part))];

  function einsum(c) {
    const [inputs, output] = c.spec.split("->"), letters = Object.fromEntries([...output].map((letter, index) => [letter, c.index[index]]));
    const terms = inputs.split(","), factors = terms.filter((term) => !term.startsWith("+"));
    const position = (term, at) => [...term].map((letter) => letter === "1" ? 0 : at[letter]);
    let size = 1, summed = null;
    factors.forEach((term, which) => [...term].forEach((letter, axis) => { if (!(letter in letters)) { summed = letter; size = c.shape(which)[axis]; } }));
    const groups = Array.from({ length: size }, (_, step) => factors.map((term, which) => c.operand(which, position(term, { ...letters, [summed]: step }))));
    const added = terms.slice(factors.length).map((term, index) => c.operand(factors.length + index, position(term.slice(1), letters)));
    const parts = between([...groups.map((group) => between(group.map((part) => [part]), " · ")), ...added.map((part) => [part])], " + ");
    return { sides: [side(parts, (v) => add(groups.map((group) => group.reduce((product, part) => product * v(part), 1))) + add(added.map(v)))] };
  }

  function softmax(c) {
    const row = c.row(0), own = row[c.index.at(-1)], finite = row.filter((part) => Number.isFinite(part.x));
    if (!Number.isFinite(own.x)) return { sides: [side(["0"], () => 0)], why: ["The key is masked: exp(−∞) is 0. "], also: [own] };
    const largest = finite.reduce((a, b) => b.x > a.x ? b : a), shifted = Math.abs(largest.x) > 20;
    const power = (part) => shifted ? ["exp(", part, " − ", largest, ")"] : ["exp(", part, ")"];
    const value = (v, part) => Math.exp(v(part) - (shifted ? v(largest) : 0));
    const made = finite.map((part) => ({ made: (v) => value(v, part) })), mine = made[finite.indexOf(own)];
    const sum = { made: (v) => add(finite.map((part) => value(v, part))) };
    const share = (v) => value(v, own) / add(finite.map((part) => value(v, part)));
    return {
      sides: [
        side([...power(own), " / (", ...between(finite.map(power), " + "), ")"], share),
        side([mine, " / (", ...between(made.map((part) => [part]), " + "), ")"], (v) => v(mine) / add(made.map(v))),
        side([mine, " / ", sum], (v) => v(mine) / v(sum)),
      ],
      why: finite.length < row.length ? ["Masked keys add exp(−∞) = 0 to the sum. "] : [],
    };
  }

  function normalize(c) {
    const row = c.row(0), own = row[c.index.at(-1)], sum = { made: (v) => add(row.map(v)) };
    return { sides: [
      side([own, " / (", ...between(row.map((part) => [part]), " + "), ")"], (v) => v(own) / add(row.map(v))),
      side([own, " / ", sum], (v) => v(own) / v(sum)),
    ] };
  }

  function scale(c) {
    const [score, width, temperature] = c.operands().map((_, which) => c.like(which));
    const parts = [score, " / √", width], heated = temperature && temperature.x !== 1;
    if (heated) parts.push(" / ", temperature);
    return { sides: [side(parts, (v) => v(score) / Math.sqrt(v(width)) / (heated ? v(temperature) : 1))], also: temperature ? [temperature] : [] };
  }

  function reason(c) {
    const [query, key] = c.index.slice(-2);
    return "“" + c.label(0, query) + "” may not attend to “" + c.label(1, key) + "”" + (key > query ? ", which comes after it. " : ". ");
  }

  function mask(c) {
    const own = c.like(0), allowed = c.like(1);
    if (allowed.x) return { sides: same(own), also: [allowed], why: ["Not masked: the score stays as it is. "] };
    return { sides: [side(["−∞"], () => -Infinity)], also: [own, allowed], why: ["Masked: " + reason(c)] };
  }

  function zero(c) {
    const own = c.like(0), allowed = c.like(1);
    return { sides: [side([own, " · ", allowed], (v) => v(own) * v(allowed))], why: [allowed.x ? "Not masked: the weight stays as it is. " : "Masked: " + reason(c)] };
  }

  function dropout(c) {
    const own = c.like(0), draw = c.like(1), rate = c.like(2);
    if (Number.isNaN(draw.x)) return { sides: same(own), also: [draw], why: ["Masked: a weight of 0 stays 0, whatever is drawn. "] };
    if (draw.x < rate.x) return { sides: [side([own, " · 0"], () => 0)], also: [rate], why: ["Dropped: its draw, ", draw, ", is below the rate, ", rate, ". "] };
    return { sides: [side([own, " · 1 / (1 − ", rate, ")"], (v) => v(own) / (1 - v(rate)))], why: ["Kept: its draw, ", draw, ", is not below the rate, ", rate, ". "] };
  }

  function additive(c) {
    const [query, key] = c.index, size = c.shape(2)[1];
    const groups = Array.from({ length: size }, (_, step) => [c.operand(2, [0, step]), c.operand(0, [query, step]), c.operand(1, [key, step])]);
    const parts = between(groups.map(([v, q, k]) => [v, " · tanh(", q, " + ", k, ")"]), " + ");
    return { sides: [side(parts, (v) => add(groups.map(([a, q, k]) => v(a) * Math.tanh(v(q) + v(k)))))] };
  }

  function rotate(c) {
    const [row, column] = c.index, half = c.shape(0)[1] / 2, pair = column % half, first = c.operand(0, [row, pair]), second = c.operand(0, [row, pair + half]);
    const angle = c.operand(1, [row, pair]), [own, other, sign] = column < half ? [first, second, -1] : [second, first, 1];
    return { sides: [side([own, " · cos(", angle, ") " + (sign < 0 ? "−" : "+") + " ", other, " · sin(", angle, ")"], (v) => v(own) * Math.cos(v(angle)) + sign * v(other) * Math.sin(v(angle)))] };
  }

  function join(c) {
    const [row, column] = c.index, width = c.shape(0)[2], head = Math.floor(column / width);
    return { sides: same(c.operand(0, [head, row, column % width])), why: ["From head " + head + ". "] };
  }

  function split(c) {
    const [head, row, column] = c.index, width = c.resultShape[2];
    return { sides: same(c.operand(0, [row, head * width + column])), why: ["A column of head " + head + ". "] };
  }

  const all = (c) => c.operands().map((_, which) => c.like(which));
  const elementwise = (sign, combine) => (c) => { const parts = all(c); return { sides: [side(between(parts.map((part) => [part]), sign), (v) => parts.map(v).reduce(combine))] }; };
  const row_sum = (c) => { const row = c.row(0); return { sides: [side(between(row.map((part) => [part]), " + "), (v) => add(row.map(v)))] }; };

  return {
    write: { einsum, softmax, normalize, scale, mask, zero, dropout, additive, rotate, join, split, row_sum, product: elementwise(" · ", (a, b) => a * b), sum: elementwise(" + ", (a, b) => a + b) },
    // What stands before, between and after the operands of an equation.
    signs: {
      softmax: ["softmax", ""], mask: ["mask", "by", ""], normalize: ["", "/ its row's sums"], scale: ["", "/ √", "/", ""], zero: ["", "⊙", ""], product: ["", "⊙", "⊙", "⊙", "⊙", ""],
      sum: ["", "+", "+", ""], dropout: ["dropout", "draws", "rate", ""], additive: ["", "and", "by v · tanh:", ""], rotate: ["rotate", "by", ""], join: ["all heads of", ""], split: ["columns of", ""], row_sum: ["row sums of", ""],
      einsum: ["", "·", "+", ""],
    },
  };
})();
