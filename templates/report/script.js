"use strict";
(() => {
  const reach = 28;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  let shown = null;

  const hide = () => {
    if (shown) shown.classList.remove("near");
    shown = null;
    tip.hidden = true;
  };
  const middle = (mark) => {
    const box = mark.querySelector(".aim").getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const show = (mark) => {
    if (shown === mark) return;
    hide();
    shown = mark;
    mark.classList.add("near");
    tip.replaceChildren(...mark.dataset.says.split("\n").map((text) => {
      const line = document.createElement("p");
      line.textContent = text;
      return line;
    }));
    tip.hidden = false;
    tip.style.left = "0";
    tip.style.top = "0";
    const [x, y] = middle(mark);
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const above = y - tip.offsetHeight - 16;
    tip.style.left = `${Math.max(8, Math.min(x - tip.offsetWidth / 2, room)) + scrollX}px`;
    tip.style.top = `${(above > 4 ? above : y + 16) + scrollY}px`;
  };

  for (const chart of document.querySelectorAll("svg.chart")) {
    const marks = [...chart.querySelectorAll(".mark")];
    const nearest = (event) => {
      let best = null, least = reach;
      for (const mark of marks) {
        const [x, y] = middle(mark);
        const far = Math.hypot(event.clientX - x, event.clientY - y);
        if (far < least) [best, least] = [mark, far];
      }
      return best;
    };
    const look = (event) => {
      const mark = nearest(event);
      if (mark) show(mark); else hide();
    };
    chart.addEventListener("pointermove", look);
    chart.addEventListener("pointerdown", look);
    chart.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    chart.addEventListener("focusin", (event) => {
      const mark = event.target.closest(".mark");
      if (!mark) return;
      for (const other of marks) other.setAttribute("tabindex", other === mark ? "0" : "-1");
      show(mark);
    });
    chart.addEventListener("focusout", hide);
    chart.addEventListener("keydown", (event) => {
      const at = marks.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: marks.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      marks[Math.max(0, Math.min(to, marks.length - 1))].focus();
    });
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("resize", hide);

  const spoken = document.querySelector(".spoken");
  const select = (element) => {
    const range = document.createRange();
    range.selectNodeContents(element);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  };
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      let said = "Copied";
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        select(source);
        said = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl-C";
      }
      button.textContent = said;
      spoken.textContent = said;
    });
  }
})();
