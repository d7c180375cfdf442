// Unpacks plotly, then draws each figure shortly before it is seen, or all of them before printing.
(async () => {
  const say = (text) => {
    const notice = document.getElementById("no-figures");
    notice.textContent = text;
    notice.hidden = false;
  };
  if (!("DecompressionStream" in window)) {
    say("This browser is too old to unpack the figures; all tables and texts are here without them.");
    return;
  }
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);
  if (!window.Plotly) {
    say("The figures could not be unpacked; all tables and texts are here without them.");
    return;
  }
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const byTouch = matchMedia("(pointer: coarse)").matches; // there a drag should scroll the page
  const waiting = new Set(Object.keys(figures));
  const draw = (id) => {
    if (!waiting.delete(id)) return;
    const layout = figures[id].layout;
    if (byTouch) layout.dragmode = false;
    Plotly.newPlot(id, figures[id].data, layout, { displayModeBar: false, responsive: true });
  };
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target.id)),
    { rootMargin: "600px" },
  );
  for (const id of waiting) near.observe(document.getElementById(id));
  // what is far below is drawn while nothing else is to be done, so that the page can be printed and searched
  const rest = () => {
    for (const id of waiting) {
      draw(id);
      break;
    }
    if (waiting.size) setTimeout(rest, 20);
  };
  setTimeout(rest, 300);
  const fit = (width) => {
    for (const plot of document.querySelectorAll(".plot")) {
      draw(plot.id);
      const narrow = plot.closest(".pair");
      Plotly.relayout(plot, width ? { autosize: false, width: narrow ? (width - 24) / 2 : width } : { autosize: true, width: null });
    }
  };
  window.addEventListener("beforeprint", () => fit(670)); // A4 and Letter within the margins
  window.addEventListener("afterprint", () => fit(null));
})();
