"use strict";

// ---- A served page: loaded again when there is a newer one, with what was chosen in it.

const served = document.currentScript.dataset.version;
const chosen = () => [...document.querySelectorAll("details, [data-group], .controls select")];

for (const [place, state] of JSON.parse(sessionStorage.getItem("chosen") ?? "[]").entries()) {
  const element = chosen()[place];
  if (element?.tagName === "DETAILS") element.open = state;
  else if (element?.tagName === "SELECT") element.value = state;
  else if (element) element.checked = state;
}

setInterval(async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch("/version");
    if (!answer.ok || (await answer.text()) === served) return;
  } catch {
    return; // the server has ended; the page stays as it is
  }
  const state = (element) =>
    element.tagName === "DETAILS" ? element.open : element.dataset.group ? element.checked : element.value;
  sessionStorage.setItem("chosen", JSON.stringify(chosen().map(state)));
  location.reload();
}, 5000);
