(() => {
  const embed = window.vegaEmbed;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const charts = [];

  function config() {
    const [text, quiet, grid] = dark.matches
      ? ["#e6e8eb", "#9aa3ad", "#343a42"] : ["#1f2328", "#646c76", "#e4e7eb"];
    const font = "system-ui, sans-serif";
    return {
      background: "transparent",
      font,
      title: { color: text, subtitleColor: quiet, anchor: "start", fontSize: 14, offset: 12 },
      axis: { labelColor: quiet, titleColor: text, domainColor: quiet, tickColor: quiet,
              gridColor: grid, titleFontWeight: "normal", titleFontSize: 12, labelFontSize: 11 },
      legend: { labelColor: text, titleColor: text, labelFontSize: 11, labelLimit: 260 },
      text: { color: text },
      view: { stroke: null },
    };
  }

  /** The text in lines that fit the card of `target`, which Vega would cut. */
  function lines(text, target) {
    const columns = Math.floor(document.querySelector(target).clientWidth / 8.5);
    return text.split(" ").reduce((done, word) => {
      const longer = `${done.at(-1)} ${word}`.trim();
      return longer.length > columns ? [...done, word] : [...done.slice(0, -1), longer];
    }, [""]);
  }

  /** The height of a bar chart in pixels: Vega-Lite warns about a height in steps beside a width that fits. */
  function height({ height, data, encoding }) {
    if (!height?.step) return height;
    return height.step * new Set(data.values.map((row) => `${row[encoding.y.field]} ${row.rev}`)).size;
  }

  // Without the schema's address, which names an older Vega-Lite, there is no warning about it.
  function draw([target, { $schema, ...spec }]) {
    if (!Object.keys(spec).length) {  // DVC's answer where no revision has the table
      document.querySelector(target).textContent = target.slice(1) + ": no data in these revisions";
      return Promise.resolve();
    }
    const options = {
      mode: "vega-lite", renderer: "svg", config: config(),
      actions: { export: true, source: false, compiled: false, editor: false },
    };
    const fitted = { ...spec, title: lines(spec.title, target), height: height(spec) };
    return embed(target, fitted, options).catch((error) => {
      console.error(target, error);
      const box = document.querySelector(target);
      box.className = "failed";
      box.textContent = target + ": " + error.message;
    });
  }

  window.vegaEmbed = (target, spec) => {
    charts.push([target, spec]);
    return draw([target, spec]);
  };
  dark.addEventListener("change", () => charts.forEach(draw));
})();
