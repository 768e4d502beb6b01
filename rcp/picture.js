// A PNG that answers to mouse, finger and keyboard. Python draws it; this file only shows it and tells where it was touched.
// Arrow keys move a cross, Enter clicks there, Shift + arrow keys drag from there.

const STEP = 0.02; // of the picture's side, a press of an arrow key
const PATIENCE = 400; // ms after which a drag goes on although no new picture came

function render({ model, el }) {
  const frame = document.createElement("div");
  frame.style.cssText = "position:relative;display:inline-block;max-width:100%;line-height:0";
  const image = document.createElement("img");
  image.className = "rcp-picture";
  image.draggable = false;
  image.style.cssText = "max-width:100%;height:auto;touch-action:" + (model.get("touchable") ? "none" : "auto");
  const cross = document.createElement("div");
  cross.textContent = "+";
  cross.style.cssText =
    "position:absolute;display:none;transform:translate(-50%,-50%);font:bold 28px/1 sans-serif;color:#000;" +
    "text-shadow:0 0 3px #fff,0 0 3px #fff,0 0 3px #fff;pointer-events:none";
  frame.append(image, cross);
  el.append(frame);

  let address = null;
  const draw = () => {
    const old = address;
    address = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    image.src = address;
    image.alt = model.get("alt");
    if (old) URL.revokeObjectURL(old);
  };
  draw();
  model.on("change:png", draw);
  if (!model.get("touchable")) {
    return () => {
      model.off("change:png", draw);
      URL.revokeObjectURL(address);
    };
  }

  // Moves wait for the picture of the one before; downs and ups do not. They are messages, not state: states of a slow
  // connection are merged, and a click would vanish.
  let waiting = null; // a timer while Python draws
  let next = null; // the last move that came in the meantime
  const send = (touch) => {
    model.send(touch);
    clearTimeout(waiting);
    waiting = setTimeout(go, PATIENCE);
  };
  const go = () => {
    clearTimeout(waiting);
    waiting = null;
    const due = next;
    next = null;
    if (due) send(due);
  };
  const tell = (phase, at) => {
    const touch = { phase, x: at.x, y: at.y };
    if (phase === "move" && waiting) {
      next = touch;
      return;
    }
    if (next) {
      model.send(next); // a drag ends where the finger left
      next = null;
    }
    send(touch);
  };
  model.on("change:png", go);

  const clamp = (v) => Math.min(1, Math.max(0, v));
  const place = (event) => {
    const box = image.getBoundingClientRect();
    return { x: clamp((event.clientX - box.left) / box.width), y: clamp((event.clientY - box.top) / box.height) };
  };
  image.tabIndex = 0;
  image.style.cursor = "crosshair";
  let pointer = null; // the one that is down
  let last = null; // where it was
  image.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary || pointer !== null) return;
    pointer = event.pointerId;
    image.setPointerCapture(pointer);
    tell("down", (last = place(event)));
  });
  image.addEventListener("pointermove", (event) => {
    if (event.pointerId === pointer) tell("move", (last = place(event)));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    image.addEventListener(name, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      tell("up", name === "pointerup" ? place(event) : last); // a cancelled pointer has no place
    });
  }

  const at = { x: 0.5, y: 0.5 };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let dragging = false;
  const release = () => {
    if (dragging) tell("up", at);
    dragging = false;
  };
  const show = (visible) => {
    cross.style.display = visible ? "block" : "none";
    cross.style.left = 100 * at.x + "%";
    cross.style.top = 100 * at.y + "%";
  };
  image.addEventListener("focus", () => show(image.matches(":focus-visible")));
  image.addEventListener("blur", () => {
    release();
    show(false);
  });
  image.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || (event.key === "Enter" && event.shiftKey)) return; // Jupyter's
    if (event.key === "Enter") {
      tell("down", at);
      tell("up", at);
    } else if (arrows[event.key]) {
      if (event.shiftKey && !dragging) tell("down", at);
      if (!event.shiftKey) release();
      dragging = event.shiftKey;
      at.x = clamp(at.x + STEP * arrows[event.key][0]);
      at.y = clamp(at.y + STEP * arrows[event.key][1]);
      if (dragging) tell("move", at);
      show(true);
    } else return;
    event.preventDefault();
    event.stopPropagation(); // or Jupyter would move to another cell
  });
  image.addEventListener("keyup", (event) => event.key === "Shift" && release());

  return () => {
    clearTimeout(waiting);
    model.off("change:png", draw);
    model.off("change:png", go);
    URL.revokeObjectURL(address);
  };
}

export default { render };
