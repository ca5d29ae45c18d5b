// Draws the page's figures: unpacks Vega's code, embeds each panel, and lets the legend's buttons show and hide lines.
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("vega").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const config = () => ({
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { labelColor: colour("--ink"), titleColor: colour("--soft"), gridColor: colour("--line"), domainColor: colour("--soft"),
      tickColor: colour("--soft"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
  });

  for (const figure of document.querySelectorAll("figure")) {
    const specs = JSON.parse(figure.querySelector("script").textContent);
    const charts = figure.querySelectorAll(".chart");
    const signals = { off: [], bars: "range" };
    let views = [];
    const draw = async () => {
      views.forEach((view) => view.finalize());
      const embedded = [...charts].map((chart, i) =>
        vegaEmbed(chart, specs[i], { mode: "vega-lite", renderer: "svg", config: config(), tooltip: { theme: dark.matches ? "dark" : "light" },
          actions: { export: true, source: false, compiled: false, editor: false } }));
      views = (await Promise.all(embedded)).map((result) => result.view);
      for (const view of views) {
        view.addEventListener("click", (_, item) => {
          const runs = document.getElementById(item?.datum?.at);
          if (runs) {
            runs.open = true;
            runs.scrollIntoView({ behavior: "smooth" });
          }
        });
      }
      await tell();
    };
    const tell = () => Promise.all(views.map((view) => view.signal("off", signals.off).signal("bars", signals.bars).runAsync()));
    const lines = [...figure.querySelectorAll(".legend button")];
    for (const button of lines) {
      button.onclick = () => {
        button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
        signals.off = lines.filter((one) => one.ariaPressed === "false").map((one) => one.dataset.line);
        tell();
      };
    }
    const kinds = [...figure.querySelectorAll(".bars button")];
    for (const button of kinds) {
      button.onclick = () => {
        kinds.forEach((one) => (one.ariaPressed = String(one === button)));
        signals.bars = button.dataset.bars;
        tell();
      };
    }
    await draw();
    dark.addEventListener("change", draw);
  }
  document.documentElement.dataset.drawn = "yes";
})();
