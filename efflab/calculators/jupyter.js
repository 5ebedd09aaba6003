// The host in JupyterLab: the widget's traits hold the state, Python saves predictions into the lab book.

let serial = 0;

function render({ model, el }) {
  const spec = model.get("_declaration"), root = element("div", { class: "efflab-calculator" });
  root.id = `${spec.name}-widget-${Date.now().toString(36)}-${serial++}`;
  el.append(root);
  const names = spec.inputs.map((i) => i.name), state = Object.fromEntries(names.map((n) => [n, model.get(n)]));
  const changed = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const save = () => new Promise((done, failed) => {
    const late = setTimeout(() => answer({ error: "No answer from the kernel. Is it running? Nothing was saved." }), 10000);
    function answer(message) {
      clearTimeout(late);
      model.off("msg:custom", answer);
      if (message.error) failed(new Error(message.error));
      else done(message.saved);
    }
    model.on("msg:custom", answer);
    model.send({ kind: "save" });
  });
  const calculator = mount(root, spec, { state, link: null, save, changed });
  const listeners = names.map((name) => [`change:${name}`, () => calculator.set(name, model.get(name))]);
  for (const [event, listener] of listeners) model.on(event, listener);
  return () => {
    for (const [event, listener] of listeners) model.off(event, listener);
    calculator.destroy();
  };
}
