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

function start() {
  const mounted = new Map();
  for (const root of document.querySelectorAll(".efflab-calculator:not([data-ready])")) {
    const { name, state } = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    mounted.set(root.id, mount(root, DECLARATIONS[name], { state, link, save: download, changed: () => {} }));
  }
  const follow = () => {
    const [, id, query] = /^#([^?]*)\?(.*)$/.exec(location.hash) ?? [];
    if (!mounted.has(id)) return;
    mounted.get(id).restore(query);
    document.getElementById(id).scrollIntoView();
  };
  window.addEventListener("hashchange", follow);
  follow();
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
