"use strict";
(function () {
  // --- sorting: by value where a column has values, what is unknown always last ---
  const words = new Intl.Collator(undefined, { numeric: true });
  function compared(a, b, way) {
    if (a.none || b.none) return a.none - b.none;
    const order = a.value === null || b.value === null ? words.compare(a.text, b.text) : a.value - b.value;
    return way * order;
  }
  function key(row, place) {
    const cell = row.cells[place];
    const value = cell.dataset.value;
    const text = cell.dataset.text !== undefined ? cell.dataset.text : cell.textContent.trim();
    return { row: row, value: value === undefined ? null : Number(value), text: text,
      none: Number(cell.dataset.none !== undefined || text === "") };
  }
  function sort(table, head) {
    const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, function (row) { return key(row, Number(head.dataset.column)); });
    rows.sort(function (a, b) { return compared(a, b, way); });
    body.append.apply(body, rows.map(function (one) { return one.row; }));
  }
  for (const table of document.querySelectorAll("table.sorts")) {
    for (const head of table.querySelectorAll("th[data-column]")) {
      if (!head.textContent.trim()) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append.apply(button, Array.from(head.childNodes));
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", function () { sort(table, head); });
    }
  }

  // --- the filter: every row and section of a trial ---
  const bar = document.querySelector(".filter");
  const facts = JSON.parse(document.getElementById("filters").textContent);
  const parts = Array.from(document.querySelectorAll("[data-trial]"));
  function wanted(fact) {
    const typed = bar.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    const told = (fact.text + " " + fact.state).toLowerCase();
    if (!typed.every(function (word) { return told.includes(word); })) return false;
    return Array.from(bar.querySelectorAll("select")).every(function (list) {
      if (!list.value) return true;
      return (list.dataset.axis === undefined ? fact.state : fact.cell[list.dataset.axis]) === list.value.slice(1);
    });
  }
  function filter() {
    const shown = new Set(Object.keys(facts).filter(function (name) { return wanted(facts[name]); }));
    for (const part of parts) part.hidden = !shown.has(part.dataset.trial);
    bar.querySelector("output").textContent = shown.size + " of " + Object.keys(facts).length + " trials";
  }
  if (bar) {
    bar.hidden = false;
    bar.addEventListener("input", filter);
    bar.querySelector("button").addEventListener("click", function () {
      for (const field of bar.querySelectorAll("input, select")) field.value = "";
      filter();
    });
    filter();
  }

  // --- a link to something folded or filtered away opens it ---
  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let one = target; one; one = one.parentElement) {
      if (one.tagName === "DETAILS") one.open = true;
      if (one.dataset && one.dataset.trial !== undefined) one.hidden = false;
    }
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  document.addEventListener("click", function (event) {
    const link = event.target.closest("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash) reveal();
  });
  if (location.hash) reveal();

  // --- copying, also where the page was opened from a file ---
  function selected(text) {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done ? Promise.resolve() : Promise.reject();
  }
  for (const place of document.querySelectorAll(".copied")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    place.append(button);
    button.addEventListener("click", function () {
      const text = place.querySelector("pre").textContent;
      const clipboard = navigator.clipboard;
      const done = clipboard ? clipboard.writeText(text).catch(function () { return selected(text); }) : selected(text);
      done.then(function () { button.textContent = "Copied"; }, function () { button.textContent = "Select it"; });
      setTimeout(function () { button.textContent = "Copy"; }, 1600);
    });
  }

  // --- charts come alive when they are seen ---
  if (!("IntersectionObserver" in window) || typeof vegaEmbed === "undefined") return;
  const options = JSON.parse(document.getElementById("embed-options").textContent);
  function enliven(figure) {
    const place = figure.querySelector(".chart");
    const spec = JSON.parse(figure.querySelector("script.spec").textContent);
    const live = document.createElement("div");
    live.hidden = true;
    place.append(live);
    vegaEmbed(live, spec, options).then(function () {
      const picture = place.querySelector("img");
      if (picture) picture.remove();
      live.hidden = false;
    }).catch(function (error) { live.remove(); console.error(error); });
  }
  const seen = new IntersectionObserver(function (entries) {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); enliven(entry.target); }
  }, { rootMargin: "300px" });
  for (const figure of document.querySelectorAll("figure")) seen.observe(figure);
})();
