# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["slide"]
# # 07 · Ablations: what does each choice do?
#
# **Goal.** A method is a list of choices. You will change them one at a time, measure what each does, and learn to tell an
# effect from the spread that the seeds alone make. You will also see what such a list cannot tell.
#
# **Time.** 30 minutes to teach, about 40 s to run.
#
# **Predict first.** Which of these moves the image AUROC most: the coreset share, the width of `f`, k, α, the margin, σ, the
# momentum, the batch, or the quality of the images? And which least? Write both down; section 7 sorts them all.

# %% tags=["install", "remove-cell"]
import importlib.util

if importlib.util.find_spec("rcp") is None:  # Colab: install rcp there; silent where it is installed
    get_ipython().run_line_magic("pip", 'install --quiet "rcp[notebooks] @ git+https://github.com/-OWNER-/rcp"')
    print("Restart the session now (menu Runtime), then run all cells.")  # what is loaded already is of another version

# %% tags=["setup"]
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
import tempfile
from dataclasses import replace
from pathlib import Path

import rcp  # before torch: it asks waiting threads to sleep, which keeps a busy laptop responsive
from IPython.display import Markdown
from rcp import course, plots_grids
from rcp.course import ablations as lesson
from rcp.course import ablations_figures as pictures
from rcp.course import ablations_paper as paper
from rcp.course import ablations_words as said
from rcp.experiments import Data, Grid, Method, Results, plan, read_grid, run_grid
from rcp.experiments.collection import collect, read_rows
from rcp.experiments.command import GRIDS
from rcp.experiments.summary import differences, interval
from rcp.quality import Quality

# real data: os.environ.update(RCP_DATA="/data/mvtec", RCP_CATEGORY="bottle")  (import os)
category = course.category("terminal")

# %% [markdown] tags=["slide"]
# ## 1 · What an ablation is, and what it is not (4 min)
#
# An *ablation* changes one choice, leaves all others at their *default*, and measures again. (The word is from surgery: take
# a part out, and see what is missing.) Here are made-up numbers, image AUROC in %, of two choices with two values each:
#
# | | learning rate low | learning rate high |
# |---|---|---|
# | **few epochs** | 90.0 (the default) | 89.5 |
# | **many epochs** | 90.5 | 95.0 |
#
# One at a time, the higher rate costs 0.5, more epochs give 0.5. What would you predict for both?

# %% tags=["nbval-check-output"]
default, rate_high, epochs_many, both = 90.0, 89.5, 90.5, 95.0
predicted = default + (rate_high - default) + (epochs_many - default)
print(f"one at a time predicts {predicted}, measured {both}: interaction {both - predicted:+.1f}")

# %% tags=["slide", "hide-input"]
course.keep(pictures.toy_figure(), "07_ablations_toy")

# %% [markdown]
# Move the fourth number (or click at its height on the right) until one at a time is right: then the two lines are parallel.
# Without a kernel, the figure above is the same at rest.

# %%
pictures.toy_explorer()

# %% [markdown]
# **What this tells you.** An ablation describes the neighbourhood of *one* default. Two choices that do nothing alone can do
# much together (or the reverse), and a list of single changes cannot show it. So "α does not matter" always means "α does not
# matter *here*". A full table of all combinations would tell, but ten choices of four values are
# $4^{10}$, more than a million, trainings.

# %% [markdown] tags=["slide"]
# ## 2 · A grid is nested loops (3 min)
#
# Every ablation is a set of *cells*: one fit each, of a category, a method, its varied settings and a seed. By hand, for two
# categories, PatchCore with two coreset shares and ReConPatch with three α and two k, each with two seeds:

# %% tags=["nbval-check-output"]
by_hand = []
for name in ("brick", "terminal"):
    for share in (0.1, 0.01):
        for seed in (0, 1):
            by_hand.append((name, "PatchCore", {"bank.coreset": share}, seed))
    for alpha in (0.0, 0.5, 1.0):
        for k in (3, 5):
            for seed in (0, 1):
                by_hand.append((name, "ReConPatch", {"training.alpha": alpha, "training.k": k}, seed))
print(len(by_hand), "cells; predicted 2 · (2 · 2 + 3 · 2 · 2) =", 2 * (2 * 2 + 3 * 2 * 2))

# %% [markdown]
# The library says the same in a `Grid`, and must give the same list:

# %% tags=["nbval-check-output"]
methods = (
    Method("PatchCore", "patchcore", vary={"bank.coreset": [0.1, 0.01]}),
    Method("ReConPatch", "reconpatch", vary={"training.alpha": [0.0, 0.5, 1.0], "training.k": [3, 5]}),
)
backbones = {"Lite0": rcp.FeatureSettings("efficientnet_lite0")}
grid = Grid("a toy", (Data("embedded", ("brick", "terminal")),), backbones, methods, seeds=(0, 1))
cells = grid.cells(lambda data: data.categories)
assert [(c.category, c.method, c.varied, c.seed) for c in cells] == by_hand
print(cells[0], cells[-1], sep="\n")

# %% [markdown]
# Or in a short text file, which is how the committed grids are written:

# %% tags=["nbval-check-output"]
TOML = """
title = "a toy"
seeds = [0, 1]
data = [{ name = "embedded", categories = ["brick", "terminal"] }]
backbones = [{ name = "Lite0", backbone = "efficientnet_lite0" }]
[[methods]]
name = "PatchCore"
detector = "patchcore"
vary = { "bank.coreset" = [0.1, 0.01] }
[[methods]]
name = "ReConPatch"
detector = "reconpatch"
vary = { "training.alpha" = [0.0, 0.5, 1.0], "training.k" = [3, 5] }
"""
with tempfile.TemporaryDirectory() as place:
    (Path(place) / "toy.toml").write_text(TOML, encoding="utf-8")
    assert read_grid(Path(place) / "toy.toml").cells(lambda data: data.categories) == cells
print("the file, the Python and the loops agree on", len(cells), "cells")

# %% [markdown] tags=["exercise"]
# ### Exercise 7.1 · Count the cells
# A grid has 2 categories, 3 backbones and 5 seeds. PatchCore varies the coreset share (3 values). ReConPatch varies α (5
# values) *and* k (2 values), and is also measured on its way, after epochs 0 and 1. How many cells, hence result files, are that?

# %% tags=["exercise"]
cells_7_1 = ...  # your answer: a number

# %% tags=["solution"]
cells_7_1 = 2 * 3 * 5 * (3 + 5 * 2)  # what is measured on the way needs no training of its own

# %% tags=["check"]
lesson.check_1(cells_7_1)

# %% [markdown] tags=["slide"]
# ## 3 · A small grid, live (5 min)
#
# One category, three values of α (0: contextual similarity alone; 1: pairwise alone; Eq. 6 of the paper mixes them), two
# seeds, a training of a few steps:
#
# $$w_{ij} = \alpha\, w^P_{ij} + (1 - \alpha)\, w^C_{ij} \tag{6}$$

# %%
training = {"epochs": 2, "steps": 16, "batch_size": 128, "learning_rate": 1e-4}
folder = tempfile.TemporaryDirectory()
live, roots = lesson.live_grid(category, [0.0, 0.5, 1.0], seeds=[0, 1], training=training)
groups = plan(live, roots, folder.name)
outcome = run_grid(groups, folder.name)
assert outcome.complete
print(len(outcome.done), "cells measured,", len(outcome.missing), "missing,", len(outcome.failed), "failed")

# %% [markdown]
# All six cells share one set of features, so the images went through the network once. What does a result file hold?

# %%
name = groups[0].names[0]
record = Results(folder.name).read(name)
print("file", name + ".json:", ", ".join(record))
print("settings:", ", ".join(f"{part} {len(found)}" for part, found in record["settings"].items() if isinstance(found, dict)), "entries")
print("metrics: ", ", ".join(f"{key} {value:.4f}" for key, value in record["metrics"].items()))

# %% [markdown]
# **What this tells you.** The file says what was measured (`metrics`, `probes`, the score of every test image), and
# everything that decided it: *all* settings, also those nobody changed, hashes of images and weights, versions. A result whose
# settings are lost cannot be compared with anything.
#
# Is there more to it than the lines of notebook 00? No:

# %%
cell = groups[0].cells[0]
detector = rcp.ReConPatch(cell.features[0], training=cell.training, bank=cell.bank, reweight=cell.options["reweight"], seed=cell.seed)
again = rcp.evaluate(detector.fit(category.train), category.test)
assert abs(again.metrics["image_auroc"] - record["metrics"]["image_auroc"]) < 1e-6
print(f"image AUROC by hand {again.metrics['image_auroc']:.4f}, in the file {record['metrics']['image_auroc']:.4f}")

# %% [markdown]
# The file's name is a *hash* of settings, data and weights. So a result is found again by what it is, whatever the grid is
# called; and what has changed is not found:

# %%
renamed = replace(live, title="another title", methods=(replace(live.methods[0], name="another name"),))
assert plan(renamed, roots, folder.name)[0].names == groups[0].names  # names decide nothing
other = plan(replace(live, training=training | {"k": 3}), roots, folder.name)
assert not set(other[0].names) & set(groups[0].names)  # every setting does
print("k = 5:", groups[0].names[0], "| k = 3:", other[0].names[0])

# %%
second = []
run_grid(groups, folder.name, say=second.append)
assert Results(folder.name).read(name) == record  # the very same file, its seconds included
print("a second run measures", len([line for line in second if "AUROC" in line]), "cells")

# %% [markdown]
# This is how a night's work survives a power cut: each finished cell is a file, and the next run does the rest. All result
# files together become one small *collection*, which figures are drawn from:

# %%
path = collect(live, groups, folder.name, Path(folder.name) / "collected" / "live.json")
own = [replace(row, data=lesson.DATA) for row in read_rows(path)]
alpha = replace(lesson.CHOICES["alpha"], levels=tuple(
    lesson.Level(f"{a:g}", "alpha", {"training.alpha": a}) for a in (0.0, 0.5, 1.0)), reference=lesson.Level("0.5", "alpha", {"training.alpha": 0.5}))

# %% tags=["sub", "hide-input"]
course.keep(pictures.choice_figure(own, alpha), "07_ablations_live")

# %%
Markdown(f"*{course.source(category)}, Lite0, {training['epochs']} epochs of {training['steps']} steps of {training['batch_size']} "
         "patches; grey: single seeds, a shape each; band: the default, mean ± standard deviation over seeds. Left: values. Right: "
         "differences from the default with the same seed, 95 % intervals.*")

# %% [markdown]
# **What this tells you.** With two seeds the intervals are very wide, as they should be: two differences hardly tell how much
# a third one would differ. The right panel is the way to look: each seed's difference first, then their mean.

# %% [markdown] tags=["exercise"]
# ### Exercise 7.2 · Paired or not
# Two methods were measured with the same seeds: `ours` and `theirs` are arrays (S,). Return two numbers: the standard
# deviation of the differences, seed by seed (*paired*); and that of a difference if the two were independent (*unpaired*),
# $\sqrt{s_o^2 + s_t^2}$. Both are deviations of a sample (`ddof=1`).

# %% tags=["exercise"]
def paired_and_unpaired(ours, theirs):
    return ...  # your turn

# %% tags=["solution"]
def paired_and_unpaired(ours, theirs):
    return (ours - theirs).std(ddof=1), (ours.var(ddof=1) + theirs.var(ddof=1)) ** 0.5

# %% tags=["check"]
lesson.check_2(paired_and_unpaired)

# %% [markdown] tags=["slide"]
# ## 4 · The paper's Tables 1, 2 and 3, beside what was measured (5 min)
#
# The same ablations were measured once with this code, as a grid that comes with it. The rows are committed; no image is
# opened from here to section 6:

# %% tags=["setup"]
rows = lesson.read("ablations")
quality_rows = lesson.read("quality")
choices = lesson.measured(rows)  # what was measured, each with its levels and its reference

# %%
shipped = read_grid(GRIDS / "ablations.toml").training  # the settings that all rows share, unless they say otherwise
seeds, names = sorted({row.seed for row in rows}), sorted({row.category for row in rows})
Markdown(f"*{len(rows)} rows; embedded synthetic data ({', '.join(names)}), EfficientNet-Lite0 at resize 256, crop 224, seeds "
         f"{', '.join(map(str, seeds))}; ReConPatch trained for {shipped['epochs']} epochs of {shipped['steps']} steps of "
         f"{shipped['batch_size']} patches at rate {shipped['learning_rate']:g}, fixed before the first run; coreset 1 %, f 512 wide "
         "unless said. Image AUROC in %, means over categories ± standard deviation over seeds.*")

# %% [markdown]
# Other pictures and a smaller network: the *numbers* of the two sources cannot be compared, the *direction* of a change can.
# Published values have columns of their own, with what is known to be wrong with them.

# %%
Markdown("**Table 1, the coreset share**\n\n" + paper.markdown(rows, 1))

# %%
Markdown("**Table 2, the width**\n\n" + paper.markdown(rows, 2))

# %%
Markdown("**Table 3, patch size and levels**\n\n" + paper.markdown(rows, 3))

# %% tags=["slide", "hide-input"]
directions = [one for n in (1, 2, 3) for one in paper.directions(rows, n)]
course.keep(pictures.directions_figure(directions), "07_ablations_directions")

# %%
Markdown(paper.said(directions))

# %% [markdown]
# **What this tells you.** Look at the sizes first, the published ones as well. The paper
# gives no spread over seeds, so from its tables alone nobody can say which of them are changes. An interval that holds
# zero is no proof that a choice does nothing, either: it says that these seeds and categories cannot tell.

# %% tags=["sub", "hide-input"]
course.keep(pictures.width_figure(rows), "07_ablations_width")

# %% [markdown]
# **What this tells you.** Four maps of the same patches to fewer (or more) numbers. The paper's Table 2 shows that a trained `f`
# keeps its AUROC where PatchCore loses some; but its PatchCore column does not say how it was made narrower, and an *untrained* `f` and a PCA are
# not in it. Whether the *training* helps shows only against the untrained `f`, which starts from the same numbers. Lite0 gives 152 numbers a patch: PCA cannot have more
# components than that, and a wider map adds numbers, not information.

# %% [markdown] tags=["slide"]
# ## 5 · Beyond the paper: eleven more choices (5 min)
#
# α with both ends (w^P alone, w^C alone), neighbours, margin, σ, momentum (0: the teacher is the student, no EMA), the length of z,
# soft or hard pseudo-labels, the batch, the learning rate, the epochs (0: `f` as it was drawn). One y scale for all:

# %%
beyond = {name: one for name, one in choices.items() if name not in ("coreset", "width", "patches")}

# %% tags=["slide", "hide-input"]
course.keep(pictures.multiples_figure(rows, beyond), "07_ablations_multiples")

# %% [markdown]
# Blue: the default, its band is mean ± standard deviation over seeds. What leaves the band deserves a second look;
# whether a change is clear, its paired interval says (section 7). The last panel holds other detectors on the same features, as a yardstick.
#
# How sure is the band itself? A standard deviation of three numbers is hardly known:

# %% tags=["nbval-check-output"]
from scipy.stats import chi2

n = 3
low, high = (((n - 1) / chi2.ppf(q, n - 1)) ** 0.5 for q in (0.975, 0.025))
print(f"the true deviation lies between {low:.2f} and {high:.2f} times that of {n} seeds (95 %)")

# %% [markdown]
# So from here on the unit is a *pooled* one: the root of the mean variance over all levels, each measured with the same
# number of seeds.

# %% tags=["setup"]
unit = lesson.spread(rows, choices.values(), "image_auroc")  # points, of a mean over categories
effects = lesson.effects(rows, choices, "image_auroc", unit)

# %%
Markdown(said.moved(effects, unit))

# %% [markdown]
# Now look closer: choose a choice and a quantity; move the level (or click on it) to read its difference. *Position share* is the part of the
# features' variance that is position in the image (the paper's Figure 3 shows positions apart after training). Look for choices that move it, or d', and
# not the AUROC. Without a kernel, the figure below is the same for α.

# %% tags=["sub", "hide-input"]
course.keep(pictures.choice_figure(rows, choices["alpha"]), "07_ablations_alpha")

# %%
pictures.explorer(rows, choices)

# %%
table = []
for quantity, (words, _, _) in lesson.QUANTITIES.items():
    own_unit = lesson.spread(rows, choices.values(), quantity)
    top = max(lesson.effects(rows, choices, quantity, own_unit), key=lambda effect: abs(effect.size))
    table.append(f"* {words}: {top.name}, {top.change.mean:+.2f}, i.e. {abs(top.size):.1f} deviations of the seeds")
Markdown("The largest effect on each quantity:\n\n" + "\n".join(table))

# %% [markdown]
# **What this tells you.** A training may change the feature space and leave the ranking of the images as it is. Position
# share answers "did anything happen?", the AUROC answers "did it help?". Both are needed: a null result of a training that
# never moved `f` would be no result at all.

# %% [markdown] tags=["slide"]
# ## 6 · Image quality: the paper's Table 4 (4 min)
#
# Not a choice of the method, but of whoever mounts the camera. The paper degrades images by rotation, translation, brightness and
# contrast, and blur, without saying how strongly, or which images. Ours (`rcp.quality`):

# %% tags=["nbval-check-output"]
magnitudes = Quality()
print(f"at most {magnitudes.degrees:g} degrees, shift {magnitudes.shift:.0%}, brightness {magnitudes.brightness:.0%}, "
      f"contrast {magnitudes.contrast:.0%}, blur {magnitudes.blur:g} px for each 256; drawn once, with seed {magnitudes.seed}")

# %% [markdown]
# **What this tells you.** The degraded images are *one draw*, the same for all seeds of the methods. So no interval over seeds below
# knows what another draw of angles, shifts and light would give.

# %% tags=["slide", "hide-input"]
course.keep(pictures.degraded_figure(category.test), "07_ablations_degraded")

# %% [markdown]
# A defect with its true outline. The outline moves with the picture (dashed: where it was), or the pixel metrics would call every
# found defect a false alarm.

# %% tags=["slide", "hide-input"]
course.keep(plots_grids.robustness(quality_rows), "07_ablations_robustness")

# %%
Markdown("**Changes of the image AUROC, in points; in brackets 95 % intervals over seeds**\n\n" + paper.quality_markdown(quality_rows))

# %%
Markdown(paper.quality_said(quality_rows))

# %% [markdown]
# **What this tells you.** Keep three questions apart. *Train side*: bad images were learned, good ones are judged; the memory has seen
# more than it needs. *Test side*: the camera has moved since the training. *Both*: the camera was bad all the time. The paper's claim is
# that ReConPatch loses *less* than PatchCore; that is a difference of differences, and its interval stands above. The untrained `f` is its
# control: if it loses as little as the trained one, the training is not the reason.

# %% [markdown] tags=["slide"]
# ## 7 · The league table (4 min)
#
# All changes in one unit, the seeds' standard deviation. Image quality is taken on the same categories as the other choices.

# %% tags=["setup"]
quality = lesson.measured(quality_rows, {"quality": lesson.QUALITY})
everything = effects + lesson.effects(quality_rows, quality, "image_auroc", unit, sorted({row.category for row in rows}))

# %% tags=["slide", "hide-input"]
course.keep(pictures.league_figure(everything), "07_ablations_league")

# %%
Markdown(said.summary(everything, unit))

# %% [markdown]
# **What this tells you.** Compare the order with your prediction. Then mind the grey zone: among so many changes *some* must be
# largest, even if all were noise; grey is how large that one is in nineteen cases of twenty. A filled circle inside it is an
# interval that excludes zero, and by the same count some do by chance. (Grey is simulated: independent seeds for each change, as many as were measured. Where paired
# seeds go up and down together, real noise is smaller.)
#
# And mind what the table is *not*: a list of better defaults. It was measured on test labels. Whoever takes its best rows and
# reports their AUROC on the same images has tuned on the test set.

# %% [markdown] tags=["exercise"]
# ### Exercise 7.3 · How many by chance?
# `everything` has `len(everything)` changes, each with a 95 % interval over seeds. If no choice did anything at all, how many of the
# intervals would exclude zero, on average?

# %% tags=["exercise"]
by_chance = ...  # your answer: a number

# %% tags=["solution"]
by_chance = 0.05 * len(everything)

# %% tags=["check"]
lesson.check_3(by_chance, len(everything))

# %%
clear = [effect for effect in everything if effect.change.clear]
Markdown(f"{len(clear)} of {len(everything)} exclude zero, {0.05 * len(everything):.1f} would by chance: " + ("; ".join(
    f"{effect.name} ({effect.change.low:+.2f} to {effect.change.high:+.2f})" for effect in clear) or "none") + ".")

# %% [markdown]
# With $n$ comparisons, Bonferroni asks each for a level of $1 - 0.05/n$ instead of 0.95; then at most one list of twenty holds any
# false alarm. With three seeds Student's t becomes very wide, so few changes can pass: more seeds are the cure.

# %%
level = 1 - 0.05 / len(everything)
strict, same = [], sorted({row.category for row in rows})
for effect in everything:
    source = quality_rows if effect.choice in quality.values() else rows
    ours, theirs = (lesson.values(source, one, "image_auroc", same) for one in (effect.level, effect.choice.reference))
    pairs = lesson.seed_means(differences(ours, theirs))  # seed → mean over categories
    strict += [effect.name] if interval(pairs.values(), level).clear else []
print(f"after Bonferroni: {', '.join(strict) or 'none'}")

# %% [markdown]
# ## Where we differ from the paper
#
# * Lite0 instead of a WideResNet-50, two made categories instead of fifteen real ones, and a shorter training at ten times the paper's
#   rate (so that a choice can show within so few steps). `rcp reproduce table1 --data mvtec DIR` measures the paper's own.
# * k, m, α, σ and γ are not stated in the paper; the defaults here are second-hand or ours (`rcp.TrainSettings` says which).
# * PatchCore at a smaller width: by random projection and PCA; the paper does not say how.
# * Magnitudes of Table 4 are ours. Three sides are told apart; the paper has one column.
# * Everything is one at a time, around one default, so section 1 applies to all of it.
#
# ## What to read next
#
# Notebook 08 asks the one question that matters most with more seeds, more data and a longer training: does the training help?

# %% [markdown] tags=["notes"]
# *For the lecturer.* Collect the predictions of the first cell on the board and keep them until section 7. Ask before section 4: "the paper reports
# 99.56 against 99.49; what would you need to know to believe it?" What usually confuses: a wide interval is not a small effect; a difference
# within the band is not "no difference"; and pairing helps only if the seeds move both alike (exercise 7.2 shows when).
