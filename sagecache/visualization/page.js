"use strict";
// Reading off charts: the legend shows the values at the pointer, or where the arrow keys have gone.
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg[data-first]");
  const cursor = svg.querySelector(".cursor");
  const at = figure.querySelector(".at");
  const outputs = [...figure.querySelectorAll("output")].map((element) => ({
    element,
    steps: JSON.parse(element.dataset.steps),
    values: JSON.parse(element.dataset.values),
    last: element.textContent,
  }));
  const [left, right, first, final] = ["left", "right", "first", "final"].map((key) => Number(svg.dataset[key]));
  const steps = [...new Set(outputs.flatMap((one) => one.steps))].sort((a, b) => a - b);
  const rest = at.textContent;
  let place = steps.length - 1;

  const nearest = (list, step) => {
    let best = 0;
    list.forEach((one, i) => { if (Math.abs(one - step) < Math.abs(list[best] - step)) best = i; });
    return best;
  };
  const text = (value) => value === null ? "–" : String(Number(value.toPrecision(3)));
  const show = (index) => {
    place = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[place];
    const x = left + (step - first) / (final - first) * (right - left);
    cursor.setAttribute("transform", `translate(${x} 0)`);
    cursor.style.opacity = 0.5;
    for (const one of outputs) one.element.textContent = text(one.values[nearest(one.steps, step)]);
    at.textContent = `at step ${step}`;
  };
  const leave = () => {
    cursor.style.opacity = 0;
    for (const one of outputs) one.element.textContent = one.last;
    at.textContent = rest;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    show(nearest(steps, first + (x - left) / (right - left) * (final - first)));
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(place + move);
  });
}

// Sorting: a click on a column's name, again for the other direction; what is empty stays below.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const number = head.classList.contains("num") || column === 0;
      const falling = head.getAttribute("aria-sort") === "none" ? head.classList.contains("num")
        : head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        const order = number && !isNaN(key(a)) ? key(a) - key(b) : key(a).localeCompare(key(b));
        return falling ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
