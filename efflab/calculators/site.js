// The host on the website: finds the calculators of the page, keeps their links, saves predictions as files.

async function download(c, result) {
  const random = Array.from(crypto.getRandomValues(new Uint8Array(4)), (b) => b.toString(16).padStart(2, "0")).join("");
  const made = prediction(c, result, "site", new Date(), random), name = `${made.id}.json`;
  const address = URL.createObjectURL(new Blob([JSON.stringify(made, null, 2) + "\n"], { type: "application/json" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  return `Saved as ${name} among your downloads. 'efflab labbook add ${name}' puts it into your lab book.`;
}

function link(part) {
  try {
    history.replaceState(history.state, "", part);
  } catch {
    location.hash = part; // a browser that allows no history for files
  }
  return location.href;
}

const declared = {}, mounted = new Map();

function follow(only) { // the state that the address asks for
  const [, id, query] = /^#([^?]*)\?(.*)$/.exec(location.hash) ?? [];
  if (!mounted.has(id) || !(only?.includes(id) ?? true)) return;
  mounted.get(id).restore(query);
  document.getElementById(id).scrollIntoView();
}

function start() { // mounts what is declared by now
  const fresh = [];
  for (const root of document.querySelectorAll(".efflab-calculator:not([data-ready])")) {
    const { name, state } = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    if (!declared[name]) continue;
    mounted.set(root.id, mount(root, declared[name], { state, link, save: download, changed: () => {} }));
    fresh.push(root.id);
  }
  follow(fresh);
}

// Each topic's script adds its calculators; see bundle.py.
globalThis.efflabCalculators = { add({ inputs, declarations, ...given }) {
  add(given);
  for (const [name, one] of Object.entries(declarations)) declared[name] = { ...one, inputs: one.inputs.map((i) => inputs[i]) };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start, { once: true });
  else start();
} };
window.addEventListener("hashchange", () => follow());
