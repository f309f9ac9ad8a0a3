// Numbers become text here only, as `format_number` of page.py formats them.
const numbers = (() => {
  function format(number, digits = 4) {
    if (Number.isNaN(number)) return "";
    if (!Number.isFinite(number)) return number < 0 ? "−∞" : "∞";
    if (Number.isInteger(number) && Math.abs(number) < 1e6) return String(number || 0);
    return Math.abs(number) < .5 * 10 ** -digits ? number.toExponential(0) : number.toFixed(digits);
  }

  // An operand: at most so many places; fewer where they are the number itself.
  function operand(number, digits, single) {
    if (!Number.isFinite(number) || Number.isInteger(number)) return format(number);
    const small = Math.abs(number) < .001, exact = (text) => (single ? Math.fround(Number(text)) : Number(text)) === number;
    for (let places = 0; places <= digits; places++) {
      const text = small ? number.toExponential(places) : number.toFixed(places);
      if (places === digits || exact(text)) return text;
    }
  }

  // The fewest places of operands, from four, and of the result, with which the sides that are shown equal the result.
  function places(sides, result) {
    if (!Number.isFinite(result)) return [4, 4];
    for (const shown of [4, 5, 6, 3, 2]) {
      for (let digits = 4; digits <= 14; digits++) {
        if (sides.every((side) => agree(side.value((part) => value(part, digits)), result, shown))) return [digits, shown];
      }
    }
    return [9, 4];
  }

  const round = (number, shown) => { const text = number.toFixed(shown); return Number(text) === 0 ? 0 : Number(text); };
  const agree = (a, b, shown) => Math.abs(b) < .5 * 10 ** -shown ? Math.abs(a) < .5 * 10 ** -shown && (b === 0 || format(a, shown) === format(b, shown)) : round(a, shown) === round(b, shown);
  const text = (part, digits) => part.made ? operand(part.made((each) => value(each, digits)), digits, false) : operand(part.x, digits, true);
  const value = (part, digits) => { const shown = text(part, digits); return shown === "−∞" ? -Infinity : Number(shown); };

  return { format, text, places };
})();
