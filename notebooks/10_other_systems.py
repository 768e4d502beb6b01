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
# # 10 · The other systems: five ideas for one question
#
# **Goal.** PatchCore remembers. Others describe a distribution, imitate a teacher, give back what they see, or learn to compare. You
# will do the heart of each idea by hand on a few numbers, meet it in the library, and read from one table what each is worth,
# what it costs, and when to take which.
#
# **Time.** 40 minutes to teach, about 30 s to run.
#
# **Predict first.** Nine systems, all starting from the same pretrained network, on the same images. How many of them are *clearly*
# better than PatchCore in image AUROC (the 95 % interval of the difference lies above zero)? And which is the slowest to fit? Write both
# down; section 7 has the answers.

# %% tags=["install", "remove-cell"]
import importlib.util

if importlib.util.find_spec("rcp") is None:  # Colab: install rcp there; silent where it is installed
    get_ipython().run_line_magic("pip", 'install --quiet "rcp[notebooks] @ git+https://github.com/-OWNER-/rcp"')
    print("Restart the session now (menu Runtime), then run all cells.")  # what is loaded already is of another version

# %% tags=["setup"]
# %matplotlib inline
# %config InlineBackend.figure_formats = ["png"]
import math

import rcp  # before torch: it asks waiting threads to sleep, which keeps a busy laptop responsive
import torch
from IPython.display import Markdown
from rcp import course, synthetic
from rcp.course import systems as lesson
from rcp.course import systems_checks as checks
from rcp.course import systems_figures as pictures
from rcp.course import systems_words as words

# %% [markdown] tags=["slide"]
# ## 1 · Five ideas (2 min)
#
# Every system sees good images of a product, and is asked of a new one: *how does it differ from what is normal?* No system sees a
# defect of that product. They differ in what they keep of the good images.

# %% tags=["slide", "hide-input"]
course.keep(pictures.taxonomy_figure(), "10_other_systems_taxonomy")

# %% [markdown]
# | idea | in this project | the paper it comes from |
# |---|---|---|
# | memory | `rcp.PatchCore`, `rcp.ReConPatch`, `rcp.SPADE` | SPADE: Cohen & Hoshen 2020 |
# | distribution | `rcp.PaDiM`, `rcp.FocusYourDistribution` | Defard et al. 2021; Zheng et al. 2022 |
# | distillation | `rcp.UninformedStudents`, `rcp.MKD` | Bergmann et al. 2020; Salehi et al. 2021 |
# | reconstruction | `rcp.RD4AD`, `rcp.ReContrast` | Deng & Li 2022; Guo et al. 2023 |
# | generalist | `rcp.InCTRL` | Zhu & Pang 2024 |
#
# (PatchCore: Roth et al. 2022; ReConPatch: Hyun et al. 2024; notebooks 00 to 08 are about these two.) All have one face: `fit(images)`,
# `score(images)`, `save`, `load`; a generalist is trained before that, on other products (`pretrain`). Each has its main file in
# `rcp/detectors/`, to be read beside its paper. Below all of them stands a baseline that sees nothing but *brightness*: the distance of
# an image's histogram of grey levels to the nearest good one.

# %% [markdown] tags=["slide"]
# ## 2 · Memory: SPADE (5 min)
#
# SPADE remembers whole images first: the image score is the mean squared distance to the K nearest good images, in the
# space of one pooled feature. (Only then does it compare positions, and only with those K images.) Five good images, one query:

# %% tags=["setup"]
good = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [4.0, 4.0], [5.0, 4.0]])  # (n, C)
query = torch.tensor([[0.5, 0.5]])  # (q, C)

# %% tags=["nbval-check-output"]
by_hand = []
for k in (1, 3, 5):
    distances = sorted(((query[0] - one) ** 2).sum().item() for one in good)
    by_hand.append(sum(distances[:k]) / k)
print("K = 1, 3, 5:", [round(value, 3) for value in by_hand])

# %%
from rcp.detectors.spade import image_distances, image_scores_for

by_library = image_scores_for(image_distances(query, good), (1, 3, 5))  # (3, q)
assert torch.allclose(by_library[:, 0], torch.tensor(by_hand))

# %% [markdown]
# **What this tells you.** With K = 5 the far group of good images decides the score. If good images come in two kinds (two
# batches of parts, two lightings), a large K punishes both. The published image AUROC of SPADE, 85.5 on MVTec AD, is said to be
# at K = 50; re-implementations find 85.5 at K = 3 and 80.1 at K = 50. Here, on all our categories (64 good images each of the synthetic ones):

# %% tags=["slide", "hide-input"]
by_k = words.spade_by_k()
course.keep(pictures.spade_figure(by_k, words.REIMPLEMENTED), "10_other_systems_spade")

# %%
Markdown(words.spade_said(by_k))

# %% [markdown] tags=["slide"]
# ## 3 · Distribution: PaDiM, and Focus Your Distribution (8 min)
#
# PaDiM keeps a Gaussian at every position. How far is a feature from it? In units of its own scatter: the Mahalanobis distance. One
# position, five good images, two numbers a feature:

# %% tags=["setup"]
rows = torch.tensor([[1.0, 1.2], [2.0, 1.9], [3.0, 3.2], [4.0, 3.8], [5.0, 5.1]])  # (n, d): both numbers rise together
along, across = torch.tensor([6.0, 6.0]), torch.tensor([4.0, 2.0])  # two new features

# %% tags=["nbval-check-output"]
n, epsilon = len(rows), 0.01
mean = rows.sum(0) / n
scatter = epsilon * torch.eye(2)
for row in rows:
    scatter += torch.outer(row - mean, row - mean) / (n - 1)
for name, x in (("along", along), ("across", across)):
    squared = (x - mean) @ torch.linalg.inv(scatter) @ (x - mean)
    print(f"{name:7} plain {(x - mean).norm():.2f}   Mahalanobis {squared.sqrt():.2f}")

# %%
from rcp.detectors.padim import fit_gaussians, mahalanobis

means, factors = fit_gaussians(rows[:, None], epsilon)  # one position: (n, P = 1, d)
found = mahalanobis(torch.stack([along, across])[:, None], means, factors)  # (2, P)
for x, by_library in zip((along, across), found[:, 0], strict=True):
    assert torch.allclose(by_library, ((x - mean) @ torch.linalg.inv(scatter) @ (x - mean)).sqrt(), rtol=1e-4)
print("library:", [round(value, 2) for value in found[:, 0].tolist()])

# %% [markdown]
# **What this tells you.** The second point is nearer to the mean, and far less likely: its numbers break a rule that all good ones keep.
# The 0.01 on the diagonal is no trifle: with fewer images than numbers Σ cannot be inverted without it.

# %% [markdown] tags=["exercise"]
# ### Exercise 10.1 · The distance that knows the scatter
# Write the function that returns the Mahalanobis distance of a row x, (d,), given the mean, (d,), and the scatter, (d, d). Without
# an explicit inverse.

# %% tags=["exercise"]
def distance(x, mean, scatter):
    return ...  # your turn

# %% tags=["solution"]
def distance(x, mean, scatter):
    apart = x - mean
    return (apart @ torch.linalg.solve(scatter, apart)).sqrt()

# %% tags=["check"]
checks.check_1(distance)

# %% [markdown] tags=["exercise"]
# ### Exercise 10.2 · Bytes first
# With WideResNet-50 the paper keeps 550 channels on a grid of 56 x 56. How many GB (10⁹ bytes) do the covariances of all
# positions take, in doubles?

# %% tags=["exercise"]
covariances_gb = ...  # your turn

# %% tags=["solution"]
covariances_gb = 56 * 56 * 550**2 * 8 / 1e9

# %% tags=["check"]
checks.check_2(covariances_gb)

# %% [markdown]
# A Gaussian *a position* takes for granted that the same thing lies at the same position in all images. **Focus Your Distribution**
# tries to make it so: it turns, shifts and scales every image first, and then its features, so that all look alike, asks for the
# anomalies there, and brings the map back. What is turned there and back has lost a little to interpolation, and no more:

# %% tags=["nbval-check-output"]
from rcp.detectors.fyd_align import brought_back, moved, similarity

picture = torch.zeros(1, 1, 40, 60)
picture[:, :, 10:14, 12:50] = 1  # a bar
turned = moved(picture, movement := similarity(torch.tensor([[math.radians(20), 0.0, 0.0, 0.0]]), (40, 60)))
returned = brought_back(turned[:, 0], movement)
by_turn, both_ways = (turned - picture).abs().mean(), (returned - picture[:, 0]).abs().mean()
assert both_ways < by_turn / 5
print(f"changed by the turn: {by_turn:.3f}, there and back again: {both_ways:.3f}")

# %% [markdown]
# And it trains the features so that the same position of *another* good image can be predicted from them. The loss is a
# negative cosine, and what is predicted is a constant (a *stop-gradient*: without it, all features become one, and every prediction is
# right). By hand, two images, one position:

# %% tags=["nbval-check-output"]
from rcp.detectors.fyd import dense_loss

predicted = torch.tensor([[3.0, 4.0], [1.0, 0.0]])  # (b, D): from image 1, from image 2
shown = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
first = (predicted[0] @ shown[1]) / (predicted[0].norm() * shown[1].norm())  # what 1 predicts, and 2 shows
second = (predicted[1] @ shown[0]) / (predicted[1].norm() * shown[0].norm())
by_library = dense_loss(predicted[:, :, None, None], shown[:, :, None, None], torch.ones(2, 1, 1))
assert torch.allclose(by_library, -(first + second) / 2)
print(f"loss {by_library:.3f}; −1 would be a perfect prediction")

# %% [markdown] tags=["slide"]
# ## 4 · Distillation: Uninformed Students, and MKD (6 min)
#
# A student learns to imitate a teacher, on good images only. Where it never learned, it fails. **Uninformed Students** asks two
# things: how wrong are the students together, and how little do they agree? Three students, two positions, two numbers:

# %% tags=["setup"]
teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # (positions, d)
students = torch.tensor([[[0.8, 0.3], [2.0, 1.0]], [[0.9, 0.4], [0.0, -1.0]], [[0.7, 0.2], [1.0, 0.0]]])  # (M, positions, d)

# %% tags=["nbval-check-output"]
errors, variances = [], []
for p in range(2):
    together = students[:, p].mean(0)
    errors.append(((together - teacher[p]) ** 2).sum())
    variances.append(sum(((one - together) ** 2).sum() for one in students[:, p]) / len(students))
    print(f"position {p}: error {errors[p]:.3f}, variance {variances[p]:.3f}")

# %%
from rcp.detectors.students import predictive_variance, regression_error

as_maps = students.permute(0, 2, 1)[:, None, :, None]  # (M, b = 1, d, H = 1, W = 2)
target = teacher.T[None, :, None]  # (1, d, 1, 2)
assert torch.allclose(regression_error(target, as_maps)[0, 0], torch.stack(errors))
assert torch.allclose(predictive_variance(as_maps)[0, 0], torch.stack(variances))

# %% [markdown]
# **What this tells you.** At the first position the students agree, and are wrong. At the second they are right *on average*, and each is
# wrong in its own way: the error alone would see nothing there. Both are counted in deviations of held-out normal images and added.
#
# **MKD** has one slim student of the whole network and two terms: values, and *directions*. A layer whose activations are all half as
# large differs in value alone; one whose activations are exchanged differs in direction as well:

# %% tags=["nbval-check-output"]
from rcp.detectors.mkd import direction_distance, value_distance

layer = torch.tensor([[[[3.0, 4.0]]]])  # (b, C, H, W)
for name, copy in (("half", layer / 2), ("exchanged", layer.flip(3))):
    apart = (layer - copy).square().mean()
    cosine = (layer * copy).sum() / (layer.norm() * copy.norm())
    assert torch.allclose(value_distance([layer], [copy]), apart) and torch.allclose(direction_distance([layer], [copy]), 1 - cosine, atol=1e-6)
    print(f"{name:10} value {apart:.2f}   direction {1 - cosine:.2f}")

# %% [markdown]
# Where is the defect? MKD asks which *pixels* move the loss: its map is the absolute gradient of the loss with respect to the image, blurred,
# and rid of single pixels.

# %% [markdown] tags=["slide"]
# ## 5 · Reconstruction: RD4AD, and ReContrast (5 min)
#
# The features go through a bottleneck, and a decoder gives them back. It has only ever given back good ones. RD4AD's map is 1 − cosine
# at every position; its loss, in its published code, is *one* cosine of a level's whole flattened map. Two positions, one faint, one strong:

# %% tags=["nbval-check-output"]
from rcp.detectors.rd4ad import global_distance, position_distance

features = torch.tensor([[[[0.1, 3.0]], [[0.0, 4.0]]]])  # (b, C = 2, H = 1, W = 2)
given_back = torch.tensor([[[[0.0, 3.0]], [[0.1, 4.0]]]])  # the faint one is wrong altogether
each = [1 - (features[0, :, 0, p] @ given_back[0, :, 0, p]) / (features[0, :, 0, p].norm() * given_back[0, :, 0, p].norm()) for p in (0, 1)]
whole = 1 - (features * given_back).sum() / (features.norm() * given_back.norm())
assert torch.allclose(position_distance(features, given_back)[0, 0], torch.stack(each), atol=1e-6)
assert torch.allclose(global_distance(features, given_back)[0], whole, atol=1e-6)
print(f"position by position: {each[0]:.2f} and {each[1]:.2f}, mean {sum(each) / 2:.2f}; the whole map: {whole:.4f}")

# %% [markdown]
# **What this tells you.** In the global cosine a position counts by the length of its feature: a faint position hardly pulls. ReContrast goes further. A second
# encoder *learns* the target domain; the decoder gives back what the *other* encoder saw; and easy positions get no gradient at all: those whose
# distance is under mean + α · deviation, with α rising from −3 to 1 over the first tenth of the steps.

# %% [markdown] tags=["exercise"]
# ### Exercise 10.3 · Who is hard enough?
# Eight positions have the distances `checks.DISTANCES`. From how many does ReContrast still learn at α = −3, 0 and 1? (Deviation: the
# sample's, as `torch.std` has it.)

# %% tags=["exercise"]
print(checks.DISTANCES)
learned_from = ...  # your turn: [at -3, at 0, at 1]

# %% tags=["solution"]
values = torch.tensor(checks.DISTANCES)
learned_from = [int((values >= values.mean() + alpha * values.std()).sum()) for alpha in (-3, 0, 1)]

# %% tags=["check"]
checks.check_3(learned_from)

# %% [markdown] tags=["slide"]
# ## 6 · The generalist: InCTRL (4 min)
#
# InCTRL never learns the product. It learned once, on other products *with their defects*, how much a difference counts; of a new one it
# gets two to eight good pictures, the prompts. The residual of a patch: half of 1 − its greatest cosine to any prompt patch. (Besides, there
# is one residual of the whole image, the prompts' mean less the query; small networks weigh both. Taught by three products only, the largest
# patch residual decides most, here.)

# %% tags=["nbval-check-output"]
from rcp.detectors.inctrl_heads import nearest_residual

prompts = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # (P = 1, C = 2, H = 1, W = 2): two patches
asked = torch.tensor([[[[1.0, -1.0]], [[1.0, 0.0]]]])  # (b = 1, C = 2, H = 1, W = 2): the query's two patches
for p in range(2):
    cosines = [(asked[0, :, 0, p] @ prompts[0, :, 0, q]) / (asked[0, :, 0, p].norm() * prompts[0, :, 0, q].norm()) for q in range(2)]
    residual = (1 - max(cosines)) / 2
    assert torch.allclose(nearest_residual(asked, prompts)[0, 0, 0, p], residual, atol=1e-6)
    print(f"patch {p}: cosines {[round(c.item(), 2) for c in cosines]}, residual {residual:.3f}")

# %% [markdown]
# What do more prompts give? Every category here was tested with an InCTRL that had learned from *other* categories only (bars at the marks:
# deviation over three draws of the prompts; dashes: PatchCore, with all good images):

# %% tags=["setup"]
measured = lesson.read("systems")
cost = lesson.costs()

# %% tags=["slide", "hide-input"]
course.keep(pictures.shots_figure(measured), "10_other_systems_shots")

# %% [markdown] tags=["slide"]
# ## 7 · Side by side (6 min)
#
# One backbone, one protocol, three seeds. Image AUROC in %, mean ± deviation over seeds, and what a system costs on two cores:

# %% tags=["sub", "hide-input"]
Markdown(words.short_table(measured, cost))

# %% [markdown]
# The whole, with all metrics, memory and what was published:

# %%
Markdown(lesson.side_by_side(measured, cost))

# %%
Markdown(f"*{lesson.table_words(measured)}. {lesson.cost_words()}.*\n\nKnown of the published numbers:\n\n{lesson.troubles_told()}")

# %% tags=["slide", "hide-input"]
course.keep(pictures.overview_figure(measured), "10_other_systems_overview")

# %% [markdown]
# Play with it: another metric, other winners?

# %%
pictures.explore_overview(measured)

# %% [markdown]
# Are these differences? Each system less PatchCore, in points, with the 95 % interval for *another category with another seed* (notebook 08
# has the three kinds); bold where zero lies outside:

# %%
Markdown(lesson.difference_table(measured))

# %%
Markdown(words.verdict(measured, cost))

# %% tags=["slide", "hide-input"]
course.keep(pictures.cost_figure(measured, cost), "10_other_systems_cost")

# %% [markdown]
# The same image under all of them, with the true outline. Each system has its own one colour scale, set on held-out normal images: it runs from
# their median to as far again above their 99.9 % quantile. (Maps are kept as means on a grid of 28 x 28: a dark one shows nothing above the
# normal range *at this resolution*.)

# %% tags=["setup"]
category = rcp.mvtec(synthetic.cached(), "terminal")
maps = pictures.read_maps()

# %% tags=["slide", "hide-input"]
course.keep(pictures.maps_figure(maps, category, maps["defects"].index(pictures.SHOWN)), "10_other_systems_maps")

# %%
pictures.explore_maps(maps, category)

# %% [markdown]
# **What this tells you.** One image proves nothing; look where each map is bright *besides* the defect, and at the good image (slide to it).
#
# Trust, but verify: PaDiM, which trains nothing, live, on the category of that picture, must find what the committed file says:

# %%
live = rcp.PaDiM().fit(category.train)
result = rcp.evaluate(live, category.test, false_alarm_rate=0.1)
kept = lesson.values(measured, "PaDiM", "image_auroc", data="embedded")
print(f"PaDiM, seed 0: image AUROC {100 * result.metrics['image_auroc']:.2f} here, {kept['embedded', 'terminal', 'Lite0', 0]:.2f} in the file")
assert math.isclose(100 * result.metrics["image_auroc"], kept["embedded", "terminal", "Lite0", 0], abs_tol=0.5)

# %% [markdown] tags=["slide"]
# ## 8 · What each idea is worth (2 min)
#
# A switch at a time, or a few, at 128 px (so these numbers compare with each other, not with the table above). The first line of a panel is the
# whole system, and the dotted line its mean; dots are seeds and categories, bars their means (`flange` lies at any angle, `terminal` never turns):

# %% tags=["slide", "hide-input"]
switched = words.ablations()
course.keep(pictures.ablation_figure(switched), "10_other_systems_ablations")

# %%
Markdown(words.settings_said())

# %% [markdown]
# In numbers, each setting less the whole system:

# %%
Markdown(f"{words.ablations_said(switched)}\n\n**What this tells you.** {words.alignment_said(switched)}")

# %% [markdown]
# Three more questions that newer papers ask. **One model for all categories** (multi-class): fitted on the good images of all, tested on each.

# %%
Markdown(words.pooled_table(measured))

# %% [markdown]
# **Another domain**: does a generalist that learned from rendered parts serve for real ones?

# %%
Markdown(words.transfer_table())

# %% [markdown]
# **Another kind of anomaly**: nothing is broken, it is another *kind* of thing. Of ten digits one is normal and the others are anomalies, or the
# other way round:

# %%
Markdown(words.digits_table())

# %% [markdown] tags=["slide"]
# ## 9 · When to use which (2 min)
#
# From what was measured here, and no more than that:

# %% tags=["slide", "hide-input"]
Markdown(lesson.when_to_use(measured, cost))

# %% [markdown]
# ## Where we differ from the papers
#
# * **One backbone for all**, EfficientNet-Lite0, so that ideas are compared and not networks; the papers have WRN-50 (SPADE, PaDiM, FYD, RD4AD,
#   ReContrast), VGG-16 (MKD), a patch network distilled from ResNet-18 (Uninformed Students; here from Lite0), CLIP (InCTRL). Each file has its paper's
#   setting as `PAPER` (of FYD hardly anything is published: it is ours), and `rcp run --preset paper` takes it.
# * **Teaching presets** train for seconds to a minute or two. A system that needs thousands of steps shows less than it can.
# * **A wider decoder** for RD4AD and ReContrast: EfficientNet's maps are narrow, and a decoder of their width gave back even good images badly
#   (REPRODUCIBILITY.md tells what that cost).
# * **Fixed elsewhere**: presets were chosen by the papers, by cost, and on synthetic images of another seed, but of the *same four products*: that
#   favours the synthetic column a little. Nothing was chosen on bottle and pill.
# * Every file under `rcp/detectors/` says in its first lines where it reads its paper in its own way.
#
# ```
# rcp run --data DIR --category pill --detector recontrast --preset paper
# rcp reproduce systems --data mvtec DIR
# ```
#
# ## What to read next
#
# Notebook 11: how many good images are enough, and what if some of them are bad?

# %% [markdown] tags=["notes"]
# *For the lecturer.* Draw the five pictograms on the board and let the class sort systems that they know. The toys of sections 2 to 6 are
# each one line on the board; do not run all of them, choose two. What usually confuses: that a student that fails is the *signal*; that a bottleneck is
# wanted to be bad at defects; that a stop-gradient changes no number of the loss, only who moves. At the table, ask first what a column *costs*. The
# published columns stand beside ours to show the distance between a paper's setting and a laptop's, not to rank.
