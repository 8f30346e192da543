"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const MEAN = "mean";
  const chosen = { text: 0, layer: 0, head: 0, token: 0 };

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function percent(share) {
    const value = 100 * share;
    return value > 0 && value < 1 ? "<1 %" : value < 100 && value > 99 ? ">99 %" : Math.round(value) + " %";
  }

  const quoted = (token) => "“" + token + "”";
  const text = () => data.rows[chosen.text];
  const steps = (one) => one.tokens.length - 1;
  const scored = (one, step) => step + 1 >= one.scoredStart;
  const firstScored = (one) => Math.max(one.scoredStart, 1) - 1;
  const missed = (one, step) => scored(one, step) && !one.likely[step][0][2];

  function weights(step) {
    const heads = text().attention[chosen.layer];
    if (chosen.head !== MEAN) return heads[chosen.head][step];
    return heads[0][step].map((_, key) => Math.round(heads.reduce((sum, head) => sum + head[step][key], 0) / heads.length));
  }

  function fill(select, options) {
    select.replaceChildren(...options.map(([value, label]) => {
      const option = element("option", label);
      option.value = value;
      return option;
    }));
  }

  function title(one) {
    const prompt = one.tokens.slice(0, one.completionStart).filter((token) => token !== "<EOS>").join(" ");
    const short = prompt.length > 60 ? prompt.slice(0, 59) + "…" : prompt;
    return (data.answers ? (one.exact ? "✓ " : "✗ ") : "") + (short || "(empty prompt)");
  }

  function drawTokens() {
    const one = text();
    byId("tokens").replaceChildren(...one.tokens.map((token, place) => {
      const last = place === steps(one);
      const button = element("button", undefined, place >= one.completionStart ? "completion" : "");
      button.type = "button";
      button.disabled = last;
      button.append(token, element("small"));
      if (place > 0 && missed(one, place - 1)) button.classList.add("missed");
      button.addEventListener("mouseenter", () => last || select(place));
      button.addEventListener("focus", () => select(place));
      button.addEventListener("click", () => select(place));
      return button;
    }));
    const verdict = one.exact
      ? [", ", element("span", "✓ right", "right")]
      : [", expected ", element("q", one.expected), " ", element("span", "✗ wrong", "missing")];
    byId("answer").replaceChildren(
      data.answers ? "Asked on its own the model answered " : "From the middle of the text on its own the model wrote ",
      element("q", one.generated), ...(data.answers ? verdict : []),
    );
  }

  function drawMap() {
    const one = text();
    const count = steps(one);
    const names = one.tokens.slice(0, count);
    const map = byId("map");
    map.className = count > 14 ? "map many" : "map";
    const head = element("thead");
    const top = element("tr");
    top.append(element("td", undefined, "later"), ...names.map((name) => {
      const cell = element("th", name);
      cell.scope = "col";
      return cell;
    }));
    head.append(top);
    const body = element("tbody");
    names.forEach((name, step) => {
      const row = element("tr");
      const first = element("th", name);
      first.scope = "row";
      row.append(first, ...names.map((other, key) => {
        if (key > step) return element("td", undefined, "later");
        const share = weights(step)[key];
        const cell = element("td", String(share));
        cell.style.setProperty("--share", share / 100);
        cell.title = name + " looks at " + other + ": " + share + " %";
        return cell;
      }));
      row.addEventListener("mouseenter", () => select(step));
      body.append(row);
    });
    map.replaceChildren(head, body);
  }

  function drawStep() {
    const one = text();
    const step = chosen.token;
    const row = weights(step);
    const buttons = [...byId("tokens").children];
    buttons.forEach((button, place) => {
      const share = row[place];
      button.style.setProperty("--share", share === undefined ? 0 : share / 100);
      button.toggleAttribute("data-share", share !== undefined);
      button.querySelector("small").textContent = share === undefined ? "" : share + " %";
      button.tabIndex = place === step ? 0 : -1;
      if (place === step) button.setAttribute("aria-current", "step");
      else button.removeAttribute("aria-current");
      const looked = share === undefined ? "" : ", looked at with " + share + " per cent";
      const surprise = place > 0 && missed(one, place - 1) ? ", not what the model expected" : "";
      button.setAttribute("aria-label", "token " + (place + 1) + ": " + one.tokens[place] + looked + surprise);
    });
    byId("likely").replaceChildren(...one.likely[step].map(([name, share, isTrue]) => {
      const item = element("li", undefined, isTrue ? "is-true" : "");
      const bar = element("span", undefined, "bar");
      const inner = element("i");
      inner.style.setProperty("--share", share);
      bar.append(inner);
      item.append(element("span", name, "name"), bar, element("span", percent(share), "value"));
      return item;
    }));
    const truth = one.tokens[step + 1];
    byId("truth").textContent = "The true next token is " + quoted(truth) + ", given " + percent(one.truth[step]) + ".";
    const [guess, share] = one.likely[step][0];
    const most = row.indexOf(Math.max(...row));
    const reason = scored(one, step) ? "wrong: " : "which it was not taught: ";
    const verdict = one.likely[step][0][2] ? "right" : reason + "it is " + quoted(truth);
    byId("said").textContent =
      "After " + quoted(one.tokens[step]) + " the model expects " + quoted(guess) + " (" + percent(share) + "), " + verdict +
      ". It looks most at " + quoted(one.tokens[most]) + " (" + row[most] + " %).";
    byId("place").textContent = "token " + (step + 1) + " of " + steps(one) + (one.cut ? " shown" : "");
    byId("back").disabled = step === 0;
    byId("next").disabled = step === steps(one) - 1;
    [...byId("map").tBodies[0].rows].forEach((line, index) => line.classList.toggle("current", index === step));
    [...byId("points").querySelectorAll("circle")].forEach((circle) => {
      circle.classList.toggle("here", circle.dataset.name === one.tokens[step]);
    });
  }

  function select(token) {
    const last = steps(text()) - 1;
    chosen.token = Math.min(Math.max(token, 0), last);
    drawStep();
  }

  function selectText(index, token) {
    chosen.text = index;
    byId("text").value = String(index);
    drawTokens();
    drawMap();
    select(token);
  }

  const openText = (index) => selectText(index, firstScored(data.rows[index]));

  function drawWrong() {
    const items = [];
    data.rows.forEach((one, index) => one.likely.forEach((likely, step) => {
      if (!missed(one, step)) return;
      const before = one.tokens.slice(Math.max(0, step - 5), step + 1).join(" ");
      const button = element("button", before + " → " + likely[0][0] + " (" + percent(likely[0][1]) + "); true: " +
        one.tokens[step + 1] + " (" + percent(one.truth[step]) + ")");
      button.type = "button";
      button.addEventListener("click", () => {
        selectText(index, step);
        byId("tokens").children[step].focus();
        byId("read-title").scrollIntoView();
      });
      const item = element("li");
      item.append(button);
      items.push(item);
    }));
    const most = 20;
    const more = items.length > most ? [element("li", "and " + (items.length - most) + " more", "quiet")] : [];
    const none = element("li", "In these texts every next token was right.");
    byId("wrong").replaceChildren(...(items.length ? [...items.slice(0, most), ...more] : [none]));
  }

  function drawPoints() {
    const make = (name, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
      return made;
    };
    const [width, height, margin] = [640, 400, 50];
    const scale = (values, low, high) => {
      const [least, most] = [Math.min(...values), Math.max(...values)];
      return (value) => most === least ? (low + high) / 2 : low + (value - least) / (most - least) * (high - low);
    };
    const x = scale(data.points.map((point) => point[1]), margin, width - 2 * margin);
    const y = scale(data.points.map((point) => point[2]), height - margin, margin);
    const points = [...data.points].sort((one, other) => one[3] - other[3]);
    byId("points").replaceChildren(...points.flatMap(([name, across, up, named]) => {
      const circle = make("circle", { cx: x(across), cy: y(up), r: named ? 5 : 2.5, class: named ? "" : "unnamed" });
      circle.dataset.name = name;
      const hint = make("title", {});
      hint.textContent = name;
      circle.append(hint);
      if (!named) return [circle];
      const label = make("text", { x: x(across) + 8, y: y(up) + 4 });
      label.textContent = name;
      return [circle, label];
    }));
  }

  function moveFocus(event) {
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    select(chosen.token + moves[event.key]);
    byId("tokens").children[chosen.token].focus();
  }

  fill(byId("text"), data.rows.map((one, index) => [String(index), title(one)]));
  fill(byId("layer"), data.layers.map((layer, index) => [String(index), String(layer)]));
  const heads = data.heads.map((head, index) => [String(index), String(head)]);
  fill(byId("head"), heads.length > 1 ? [...heads, [MEAN, "mean of these"]] : heads);
  byId("text").addEventListener("change", (event) => openText(Number(event.target.value)));
  byId("layer").addEventListener("change", (event) => { chosen.layer = Number(event.target.value); drawMap(); drawStep(); });
  byId("head").addEventListener("change", (event) => {
    chosen.head = event.target.value === MEAN ? MEAN : Number(event.target.value);
    drawMap();
    drawStep();
  });
  byId("back").addEventListener("click", () => select(chosen.token - 1));
  byId("next").addEventListener("click", () => select(chosen.token + 1));
  byId("tokens").addEventListener("keydown", moveFocus);
  drawPoints();
  if (data.rows.length) {
    drawWrong();
    openText(0);
  } else {
    byId("texts").hidden = true;
  }
})();
