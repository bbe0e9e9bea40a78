(() => {
  const form = document.querySelector(".filter"), words = document.getElementById("words");
  const said = form.querySelector(".found"), groups = [...document.querySelectorAll("details.claims")];
  document.querySelector(".search").hidden = false;
  const show = () => {
    const verdict = form.elements.verdict.value, wanted = words.value.trim().toLowerCase();
    let total = 0;
    for (const group of groups) {
      let shown = 0;
      for (const row of group.querySelectorAll("tr[data-v]")) {
        const hit = (verdict === "all" || row.dataset.v === verdict) &&
          (!wanted || row.textContent.toLowerCase().includes(wanted));
        row.hidden = !hit;
        shown += hit;
      }
      const narrowed = verdict !== "all" || wanted !== "";
      group.hidden = narrowed && !shown;
      group.open = narrowed && shown > 0;
      total += shown;
    }
    said.textContent = `${total} claims`;
  };
  form.addEventListener("input", show);
  const follow = () => {
    const row = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const group = row && row.closest("details.claims");
    if (group) { group.open = true; row.scrollIntoView(); }
  };
  addEventListener("hashchange", follow);
  follow();
})();
