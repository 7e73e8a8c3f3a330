const form = document.querySelector("form"), flips = [...document.querySelectorAll(".flip")];
const texts = flips.map(flip => flip.textContent.toLowerCase());
function filter() {
  const words = form.querySelector("input").value.toLowerCase().split(/\s+/);
  const chosen = [...form.querySelectorAll("select")].filter(select => select.value);
  let shown = 0;
  flips.forEach((flip, i) => {
    flip.hidden = !(chosen.every(select => flip.dataset[select.name] === select.value) && words.every(word => texts[i].includes(word)));
    shown += !flip.hidden;
  });
  form.querySelector("output").value = `${shown} of ${flips.length} shown`;
}
form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", event => event.preventDefault());
filter();
