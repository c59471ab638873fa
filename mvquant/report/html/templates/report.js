"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const said = (words) => { byId("said").textContent = words; };

  /** Make an element; text is always text, never markup. */
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // ---- tables ----------------------------------------------------------------------------------------------------

  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  /** What a cell is sorted by: its number, else its text; empty cells have neither and stay at the end. */
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text === "–" ? null : text;
  };

  const compare = (left, right) => {
    if (typeof left === "number" && typeof right === "number") return left - right;
    return collator.compare(String(left), String(right));
  };

  const sortBy = (table, column, direction) => {
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row) => [row, keyOf(row, column)]);
    const full = rows.filter(([, key]) => key !== null).sort(([, left], [, right]) => sign * compare(left, right));
    table.tBodies[0].append(...[...full, ...rows.filter(([, key]) => key === null)].map(([row]) => row));
  };

  const sortable = (table) => {
    const original = [...table.tBodies[0].rows];
    const headings = [...table.tHead.querySelectorAll("tr.names th")];
    headings.forEach((heading, column) => {
      const name = heading.textContent;
      const button = make("button", "", name);
      button.type = "button";
      button.addEventListener("click", () => {
        const first = heading.classList.contains("num") ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const was = heading.getAttribute("aria-sort");
        const now = was === null ? first : was === first ? second : null;
        headings.forEach((each) => each.removeAttribute("aria-sort"));
        if (now === null) {
          table.tBodies[0].append(...original);
          said("in the original order");
        } else {
          heading.setAttribute("aria-sort", now);
          sortBy(table, column, now);
          said(`sorted by ${name}, ${now}`);
        }
      });
      heading.replaceChildren(button);
    });
  };
  document.querySelectorAll("table.sortable").forEach(sortable);

  // ---- scatter plots: a mark and its line in the list are shown together ------------------------------------------

  const marks = [...document.querySelectorAll(".point")];
  const entries = [...document.querySelectorAll(".entries button")];
  let pinned = null;
  const choose = (label) => {
    document.querySelectorAll(".panels").forEach((each) => each.classList.toggle("some", label !== null));
    marks.forEach((point) => {
      const chosen = point.dataset.label === label;
      point.classList.toggle("chosen", chosen);
      const place = point.parentNode;
      if (chosen && place.nextSibling) place.parentNode.append(place);
    });
    entries.forEach((entry) => entry.classList.toggle("chosen", entry.dataset.label === label));
  };
  [...marks, ...entries].forEach((each) => {
    each.addEventListener("pointerenter", () => choose(each.dataset.label));
    each.addEventListener("pointerleave", () => choose(pinned));
  });
  entries.forEach((entry) => {
    entry.addEventListener("focus", () => choose(entry.dataset.label));
    entry.addEventListener("blur", () => choose(pinned));
    entry.addEventListener("click", () => {
      pinned = pinned === entry.dataset.label ? null : entry.dataset.label;
      entries.forEach((each) => each.setAttribute("aria-pressed", String(each.dataset.label === pinned)));
      choose(pinned);
    });
    entry.setAttribute("aria-pressed", "false");
  });

  // ---- command ---------------------------------------------------------------------------------------------------

  const copy = byId("copy");
  if (navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(byId("command").textContent);
        copy.textContent = "Copied";
      } catch {
        copy.textContent = "Not allowed";
      }
      said(copy.textContent);
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
  }

  // ---- flips -----------------------------------------------------------------------------------------------------

  const source = byId("flip-data");
  if (!source) return;
  const { head, items } = JSON.parse(source.textContent);
  const labels = new Map(head.tasks);
  const form = byId("flip-filters");
  const { variant: variantField, task: taskField, direction: directionField, words: wordsField } = form.elements;
  const PAGE = 50;
  let shown = PAGE;

  const flips = items.map(([task, id, prompt, answer, choices, different, given]) => {
    const correct = given.map((index) => (index < 0 ? null : different[index][1]));
    const said = different.map(([prediction, , text]) => `${prediction} ${text ?? ""}`).join(" ");
    return { task, id, prompt, answer, choices, different, given, correct, text: `${id} ${prompt} ${said}`.toLowerCase() };
  });

  /** How an item changed from the baseline (0) to a variant: broke, fixed, or not at all. */
  const change = (flip, variant) => {
    const [before, after] = [flip.correct[0], flip.correct[variant]];
    if (before === null || after === null || before === after) return null;
    return before ? "broke" : "fixed";
  };

  const count = (variant) => {
    const found = { broke: 0, fixed: 0 };
    flips.forEach((flip) => { const how = change(flip, variant); if (how) found[how] += 1; });
    return found;
  };

  const option = (value, text) => {
    const element = make("option", "", text);
    element.value = value;
    return element;
  };

  head.variants.forEach(([name], index) => {
    if (index === 0) return;
    const { broke, fixed } = count(index);
    variantField.append(option(String(index), `${name} (−${broke} +${fixed})`));
  });
  variantField.append(option("", "all models"));
  taskField.append(option("", "all tasks"), ...head.tasks.map(([name, label]) => option(name, label)));
  const first = head.variants.findIndex(([, role], index) => role === "variant" && flips.some((flip) => change(flip, index)));
  variantField.value = first > 0 ? String(first) : "";

  const matching = () => {
    const variant = variantField.value === "" ? null : Number(variantField.value);
    const words = wordsField.value.trim().toLowerCase();
    return flips.filter((flip) => {
      if (taskField.value && flip.task !== taskField.value) return false;
      if (words && !flip.text.includes(words)) return false;
      const candidates = variant === null ? head.variants.keys() : [variant];
      for (const each of candidates) {
        const how = change(flip, each);
        if (how && (!directionField.value || how === directionField.value)) return true;
      }
      return false;
    });
  };

  const answerLine = (flip, index, names, mine) => {
    const [prediction, correct, text] = flip.different[index];
    const line = make("li");
    const mark = make("span", correct ? "sure" : "wrong", correct ? "✓" : "✗");
    mark.append(make("span", "unseen", correct ? "right" : "wrong"));
    const body = make("div");
    const quote = make("q", "", prediction === "" ? "(nothing)" : prediction);
    quote.dir = "auto";
    body.append(quote);
    const who = make("span", "note");
    names.forEach(([name, chosen], place) => {
      if (place) who.append(", ");
      who.append(make("span", chosen && mine ? "mine" : "", name));
    });
    body.append(who);
    if (text !== null && text !== prediction) {
      const whole = make("details", "note");
      whole.append(make("summary", "", "whole answer"), make("pre", "", text));
      body.append(whole);
    }
    line.append(mark, body);
    return line;
  };

  const answers = (flip, variant) => {
    const list = make("ul", "said");
    const order = variant === null ? [] : [flip.given[0], flip.given[variant]];
    const rest = flip.different.keys();
    const places = [...new Set([...order, ...rest])].filter((index) => index >= 0);
    places.forEach((index) => {
      const names = head.variants.map(([name], each) => [name, each === variant || each === 0, flip.given[each]]);
      list.append(answerLine(flip, index, names.filter(([, , given]) => given === index), variant !== null));
    });
    return list;
  };

  const inside = (flip, variant) => {
    const box = make("div", "inside");
    const asked = make("div");
    const prompt = make("pre", "", flip.prompt);
    prompt.dir = "auto";
    prompt.tabIndex = 0;
    prompt.setAttribute("aria-label", "Prompt");
    asked.append(make("h4", "", "Prompt"), prompt);
    const told = make("div");
    const right = make("p");
    const expected = make("b", "", flip.answer);
    expected.dir = "auto";
    right.append("Right answer: ", expected);
    if (flip.choices) right.append(make("span", "note", ` of ${flip.choices.join(", ")}`));
    told.append(make("h4", "", "Answers"), right, answers(flip, variant));
    box.append(asked, told);
    return box;
  };

  /** The line of an item before it is opened: what became of it, the end of its prompt, where it comes from. */
  const summary = (flip, variant) => {
    const line = make("summary");
    const how = variant === null ? null : change(flip, variant);
    const wrong = flip.correct.filter((each) => each === false).length;
    const known = flip.correct.filter((each) => each !== null).length;
    const state = { broke: "✗ broke", fixed: "✓ mended" }[how] ?? `${wrong} of ${known} ✗`;
    const gist = make("span", "gist", flip.prompt.trim().split("\n").at(-1));
    gist.dir = "auto";
    line.append(
      make("span", `state ${how ?? ""}`, state), gist,
      make("span", "where", `${labels.get(flip.task) ?? flip.task}, ${flip.id}`),
    );
    return line;
  };

  const item = (flip, variant) => {
    const box = make("details", "flip");
    box.append(summary(flip, variant));
    box.addEventListener("toggle", () => {
      if (box.open && box.children.length === 1) box.append(inside(flip, variant));
    });
    return box;
  };

  const show = () => {
    const variant = variantField.value === "" ? null : Number(variantField.value);
    const found = matching();
    byId("flip-list").replaceChildren(...found.slice(0, shown).map((flip) => item(flip, variant)));
    const more = found.length - Math.min(shown, found.length);
    byId("flip-more").hidden = more === 0;
    byId("flip-more").textContent = `Show ${Math.min(PAGE, more)} more`;
    byId("flip-count").textContent = found.length === 0
      ? "No item fits these filters."
      : `${found.length} item${found.length === 1 ? "" : "s"}${more ? `, the first ${shown} shown` : ""}`;
  };

  const again = () => { shown = PAGE; show(); };
  form.addEventListener("input", again);
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("flip-more").addEventListener("click", () => {
    const before = shown;
    shown += PAGE;
    show();
    byId("flip-list").children[before]?.querySelector("summary").focus();
  });

  // Up and down go from item to item, Home and End to the first and last.
  byId("flip-list").addEventListener("keydown", (event) => {
    if (event.target.parentElement?.className !== "flip" || event.target.tagName !== "SUMMARY") return;
    const lines = [...byId("flip-list").querySelectorAll(".flip > summary")];
    const here = lines.indexOf(event.target);
    const next = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: lines.length - 1 }[event.key];
    if (next === undefined || !lines[next]) return;
    event.preventDefault();
    lines[next].focus();
  });

  document.querySelectorAll("a.jump").forEach((link) => {
    link.addEventListener("click", () => {
      const place = head.variants.findIndex(([name]) => name === link.dataset.variant);
      variantField.value = String(place);
      taskField.value = link.dataset.task;
      directionField.value = "";
      wordsField.value = "";
      again();
      byId("flips").focus({ preventScroll: true });
    });
  });

  form.hidden = false;
  show();
})();
