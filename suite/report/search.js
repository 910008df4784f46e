"use strict";
// Each search box hides what in its section does not hold its text; without this script everything stays to be read.
for (const box of document.querySelectorAll("input[type=search]")) {
  const section = box.closest("section");
  const items = [...section.querySelectorAll("[data-find]")].map((item) => [item, item.textContent.toLowerCase()]);
  const count = section.querySelector("output");
  box.hidden = false;
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase().trim();
    let found = 0;
    const open = new Set();
    for (const [item, text] of items) {
      item.hidden = !text.includes(wanted);
      if (item.hidden) continue;
      found += 1;
      for (let at = item.closest("details"); at; at = at.parentElement.closest("details")) open.add(at);
    }
    for (const fold of section.querySelectorAll("details")) {
      fold.open = wanted !== "" && open.has(fold);
      fold.hidden = wanted !== "" && !open.has(fold);
    }
    count.textContent = wanted ? `${found} of ${items.length}` : "";
  });
}
