// Formulae first, then each slide is made to fit, then Reveal starts: a formula that fills in later would change the height.
window.MathJax = {
  tex: { inlineMath: [["$", "$"], ["\\(", "\\)"]], displayMath: [["$$", "$$"], ["\\[", "\\]"]], processEscapes: true },
  options: { enableMenu: false },
  svg: { fontCache: "local" },
  startup: {
    ready() {
      MathJax.startup.defaultReady();
      MathJax.startup.promise.then(start);
    },
  },
};

const SMALL = 0.72; // of the type size: with less, what stands last on a slide goes to one of its own
const SMALLEST = 0.5; // a single cell that needs less than that scrolls

async function start() {
  // The lecturer's view copies notes without MathJax's style sheet: what is hidden here would show there, a second time.
  document.querySelectorAll("aside.notes mjx-assistive-mml").forEach((twin) => twin.remove());
  const pictures = [...document.images].map((picture) => picture.decode().catch(() => {})); // a broken one keeps its box
  await Promise.all([...pictures, document.fonts.ready]);
  document.querySelectorAll(".slides > section > section").forEach(split);
  await Reveal.initialize({
    width: 1280,
    height: 720,
    margin: 0,
    center: false,
    display: "flex",
    hash: true,
    slideNumber: "c/t",
    transition: "none",
    pdfSeparateFragments: false,
    plugins: [RevealNotes],
  });
  document.body.classList.add("ready");
}

/** Makes a slide fit; where the type would be too small, its last cells go to a slide after it, under the same heading. */
function split(slide) {
  const cells = () => [...slide.children].filter((cell) => !cell.matches("aside") && !cell.querySelector(".running"));
  const moved = [];
  while (fit(slide) < SMALL && cells().length > 1) {
    moved.unshift(cells().at(-1));
    moved[0].remove();
  }
  if (!moved.length) return;
  const stack = slide.parentElement.cloneNode(false);
  const next = slide.cloneNode(false);
  const heading = slide.querySelector("h2, h3, .running");
  if (heading) {
    const running = document.createElement("div");
    running.innerHTML = `<p class="running">${heading.innerHTML.replace(/\s*\(\d+ min\)\s*$/, "")}</p>`;
    next.append(running);
  }
  next.append(...moved);
  stack.append(next);
  slide.parentElement.after(stack);
  split(next);
}

/** Takes as much of the type size as the slide needs to hold its content; returns the share that is left. */
function fit(slide) {
  const shown = [slide.parentElement, slide];
  for (const element of shown) element.style.display = "flex";
  const pictured = [...slide.children].filter((cell) => cell.querySelector("img")).length;
  slide.style.setProperty("--least", `${pictured > 1 ? 480 / pictured : 300}px`);
  const tooLarge = () =>
    slide.scrollHeight > slide.clientHeight + 1 ||
    [...slide.querySelectorAll("pre, table, mjx-container[display]")].some(
      (box) => Math.max(box.scrollWidth, box.offsetWidth) > box.parentElement.clientWidth + 1,
    );
  let size = 1;
  slide.style.setProperty("--size", size);
  while (tooLarge() && size > SMALLEST) {
    size -= 0.04;
    slide.style.setProperty("--size", size);
  }
  slide.dataset.size = size.toFixed(2);
  for (const element of shown) element.style.removeProperty("display");
  return size;
}
