// Which algorithms are shown, in all figures at once: a click toggles one, a double click shows it alone.
const buttons = [...document.querySelectorAll("#chips button")];

function show() {
  const hidden = new Set(
    buttons.filter((b) => b.getAttribute("aria-pressed") === "false").map((b) => b.dataset.algo),
  );
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const own = [...plot.data.keys()].filter((index) => plot.data[index].meta);
    if (own.length) {
      const shown = new Set(own.map((index) => plot.data[index].meta).filter((algo) => !hidden.has(algo)));
      const visible = own.map((index) => {
        const { meta, fill } = plot.data[index];
        return !hidden.has(meta) && (fill !== "toself" || shown.size <= BANDS);
      });
      Plotly.restyle(plot, { visible }, own);
    }
  }
}

for (const button of buttons) {
  button.title = "click: show or hide; double click: show alone";
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
    show();
  });
  button.addEventListener("dblclick", () => {
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    show();
  });
}
