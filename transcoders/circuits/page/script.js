document.querySelectorAll("svg").forEach(svg => {
  let fixed = null;
  function choose(id) {
    svg.classList.toggle("chosen", id !== null);
    svg.querySelectorAll(".on").forEach(e => e.classList.remove("on"));
    if (id === null) return;
    const near = new Set([id]);
    svg.querySelectorAll(".edge").forEach(e => {
      if (e.dataset.from === id || e.dataset.to === id) {
        e.classList.add("on"); near.add(e.dataset.from); near.add(e.dataset.to);
      }
    });
    svg.querySelectorAll("g.node").forEach(n => n.classList.toggle("on", near.has(n.dataset.id)));
  }
  svg.querySelectorAll("g.node").forEach(n => {
    n.addEventListener("mouseenter", () => fixed === null && choose(n.dataset.id));
    n.addEventListener("mouseleave", () => fixed === null && choose(null));
    n.addEventListener("click", () => {
      fixed = fixed === n.dataset.id ? null : n.dataset.id; choose(fixed);
      const list = document.getElementById(n.dataset.id);
      if (list) list.open = fixed !== null;
    });
  });
});
