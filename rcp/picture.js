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
    image.onload = () => old && URL.revokeObjectURL(old);
    image.src = address;
    image.alt = model.get("alt");
  };
  draw();
  model.on("change:png", draw);
  if (!model.get("touchable")) return () => URL.revokeObjectURL(address);

  image.tabIndex = 0;
  image.style.cursor = "crosshair";
  let count = 0;
  let waiting = null; // a timer while Python draws
  let next = null; // the last touch that came in the meantime
  const tell = (phase, x, y) => {
    if (waiting && phase === "move") {
      next = [phase, x, y];
      return;
    }
    if (phase !== "move") next = null;
    model.set("touch", { phase, x, y, count: ++count });
    model.save_changes();
    clearTimeout(waiting);
    waiting = setTimeout(go, PATIENCE);
  };
  const go = () => {
    clearTimeout(waiting);
    waiting = null;
    const due = next;
    next = null;
    if (due) tell(...due);
  };
  model.on("change:png", go);

  const clamp = (v) => Math.min(1, Math.max(0, v));
  const place = (event) => {
    const box = image.getBoundingClientRect();
    return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
  };
  let held = false;
  image.addEventListener("pointerdown", (event) => {
    held = true;
    image.setPointerCapture(event.pointerId);
    tell("down", ...place(event));
  });
  image.addEventListener("pointermove", (event) => held && tell("move", ...place(event)));
  for (const name of ["pointerup", "pointercancel"]) {
    image.addEventListener(name, (event) => {
      if (held) tell("up", ...place(event));
      held = false;
    });
  }

  const at = { x: 0.5, y: 0.5 };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let dragging = false;
  const show = (visible) => {
    cross.style.display = visible ? "block" : "none";
    cross.style.left = 100 * at.x + "%";
    cross.style.top = 100 * at.y + "%";
  };
  image.addEventListener("focus", () => show(image.matches(":focus-visible")));
  image.addEventListener("blur", () => show(false));
  image.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      tell("down", at.x, at.y);
      tell("up", at.x, at.y);
    } else if (arrows[event.key]) {
      if (event.shiftKey && !dragging) tell("down", at.x, at.y);
      dragging = event.shiftKey;
      at.x = clamp(at.x + STEP * arrows[event.key][0]);
      at.y = clamp(at.y + STEP * arrows[event.key][1]);
      if (dragging) tell("move", at.x, at.y);
      show(true);
    } else return;
    event.preventDefault();
    event.stopPropagation(); // or Jupyter would move to another cell
  });
  image.addEventListener("keyup", (event) => {
    if (event.key === "Shift" && dragging) {
      dragging = false;
      tell("up", at.x, at.y);
    }
  });
  return () => URL.revokeObjectURL(address);
}

export default { render };
