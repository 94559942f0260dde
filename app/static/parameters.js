// The parameters of the chosen algorithm as a form, made from its signature; what is left empty is the default.
"use strict";
(() => {
  const { el } = ttsVision;

  // props.settings: parameters by algorithm; props.value: {algorithm, values}
  ttsVision.parameters = (element, { watch, props }) => {
    const root = element.querySelector(".tv-params");
    let shown = null;

    const control = (setting, id, set) => {
      const change = (event) => set(setting.name, event.target.value);
      if (!setting.choices.length) {
        return el("input", { id, type: "text", placeholder: setting.default, autocomplete: "off", oninput: change });
      }
      const options = [["", `default (${setting.default})`], ...setting.choices.map((choice) => [choice, choice])];
      return el("select", { id, onchange: change }, ...options.map(([value, label]) => el("option", { value }, label)));
    };

    const draw = () => {
      const algorithm = (props.value || {}).algorithm;
      if (algorithm === shown) return;
      shown = algorithm;
      const set = (name, value) => {
        props.value = { algorithm, values: { ...props.value.values, [name]: value } };
      };
      ttsVision.put(root, ...(props.settings[algorithm] || []).flatMap((setting) => {
        const id = `tv-parameter-${setting.name}`;
        return el("div", { class: "tv-field" },
          el("label", { for: id }, setting.label), el("p", { id: `${id}-help` }, setting.help),
          fillIn(control(setting, id, set), id));
      }));
    };
    const fillIn = (node, id) => {
      node.setAttribute("aria-describedby", `${id}-help`);
      return node;
    };
    watch("value", draw);
    draw();
  };
})();
