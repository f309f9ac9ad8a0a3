// The memory of a KV cache: the product of the numbers in the form.
for (const form of document.querySelectorAll("form.calculator")) {
  const grouped = (number) => number.toLocaleString("en-US"), read = (name) => form.elements[name].valueAsNumber;
  const show = () => {
    const [layers, heads, width, bytes, tokens] = ["layers", "heads", "width", "bytes", "tokens"].map(read);
    const each = 2 * layers * heads * width * bytes, known = [...form.elements].every((field) => field.tagName === "OUTPUT" || field.checkValidity());
    form.querySelector("output").textContent = known
      ? `2 · ${layers} · ${heads} · ${width} · ${bytes} = ${grouped(each)} bytes a token; times ${grouped(tokens)} tokens: ${(each * tokens / 2 ** 30).toFixed(2)} GiB`
      : "Write whole numbers from 1 to 10,000,000.";
  };
  for (const event of ["input", "change"]) form.addEventListener(event, show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
}
