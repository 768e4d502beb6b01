"""Focus Your Distribution: bring the pictures of a product into line, then teach the backbone to say the same at the same place.

PaDiM asks position by position what is normal, so it needs parts that lie where they always lie, and features that vary little
between good pictures. Both can be learned from good pictures alone. *Coarse:* every picture is moved so that the pictures'
features agree (image level), and every stage's feature map likewise (feature level). *Fine:* at every position, what a small
predictor makes of one picture's feature should point where another picture's feature points. Nothing pushes features apart, as
contrastive learning does; that they do not all become one is due to the stop-gradient on the other picture's side.

Source: Zheng et al., Focus Your Distribution: Coarse-to-Fine Non-Contrastive Learning for Anomaly Detection and Localization,
ICME 2022 (arXiv 2110.04538). Loss and stop-gradient: Chen & He, Exploring Simple Siamese Representation Learning, CVPR 2021
(arXiv 2011.10566). There is no official code, and much of the set-up is unpublished.

Where we differ, or had to choose
* Movements keep shapes: a turn, a shift, a change of scale, each within a limit. A batch's mean movement is drawn to none,
  features are compared at length 1, and only where both pictures show something: else all could zoom into an empty corner.
* From "no turn", gradients do not find a half turn. So a picture is first tried in `angles` turns, and takes that which is
  nearest to a reference, the mean of training pictures that were turned to suit each other. angles=1 leaves that out.
* Image alignment is learned first, on smaller pictures, moved at random as some sixty do not show all poses, through the
  frozen backbone. Then its movements stay. BatchNorm keeps its statistics; the dense loss counts on every level alike.
* Maps are brought back: a score is given to the place in the *picture as it came*. What lies beyond a moved picture is its
  reflection; what the moved picture did not show takes the nearest score. An image's score is the largest of the map brought back.
* A tenth of the good pictures is held out for the threshold: neither the losses nor the Gaussians see it.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp.detectors.fyd_align import CONGEALED, after, brought_back, moved, pairwise_l2, seen, similarity, unit
from rcp.detectors.fyd_network import Focused, ImageAligner, predict, project
from rcp.detectors.fyd_options import PAPER, PAPER_FEATURES, FocusYourDistributionOptions
from rcp.detectors.gaussians import fit_gaussians, mahalanobis
from rcp.detectors.pixel import TrainedDetector
from rcp.levels import join_levels, neighbourhood_average
from rcp.modelfile import ModelFile
from rcp.pixels import AT_A_TIME
from rcp.scoring import image_scores
from rcp.training import StepRecord, drawn_from, train

__all__ = ["PAPER", "PAPER_FEATURES", "FocusYourDistribution", "FocusYourDistributionOptions", "dense_loss"]


def dense_loss(predicted: Tensor, projected: Tensor, weights: Tensor) -> Tensor:
    """Return the negative cosine between what is predicted from one picture and what another shows at the same position.

    Args:
        predicted: (b, D, H, W), p = h(g(f)).
        projected: (b, D, H, W), z = g(f); no gradient flows into it.
        weights: (b, H, W), 1 where a picture has something to show.

    Returns:
        A number in [-1, 1]: -Σ w_i w_j cos(p_i, sg(z_j)) / Σ w_i w_j over positions and pairs i ≠ j, both ways round.

    Source: FYD, fine alignment; SimSiam, Eqs 1-4. The sum over pairs is a product of sums: no (b, b, D, H, W).
    """
    w = weights[:, None]
    p, z = F.normalize(predicted, dim=1) * w, F.normalize(stopped(projected), dim=1) * w  # (b, D, H, W)
    cosines = (p.sum(0) * z.sum(0)).sum() - (p * z).sum()
    return -cosines / (w.sum(0).square() - w.square().sum(0)).sum().clamp_min(1)


def stopped(target: Tensor) -> Tensor:
    """Return the target without gradient: without this line all features become one."""
    return target.detach()


class FocusYourDistribution(TrainedDetector):
    """Aligned pictures and features, a backbone trained to agree with itself, and a Gaussian a position."""

    kind = "fyd"
    Options = FocusYourDistributionOptions
    levels = (1, 2, 3)
    missing = "Gaussians"
    unused = ("merge", "pooled_width", "stored")

    mean: Tensor | None = None  # (H, W, d)
    factor: Tensor | None = None  # (H, W, d, d)

    def _learn(self, pixels: Tensor, held: Tensor, generator: torch.Generator) -> list[StepRecord]:
        if len(pixels) < 2:
            raise ValueError(f"FocusYourDistribution needs at least 2 images to train on, got {len(pixels)}")
        self.chosen = torch.randperm(self.extractor.width, generator=torch.Generator().manual_seed(self.seed))
        self.chosen = self.chosen[: self._width].sort().values.to(self.extractor.device)  # (d,): the channels that PaDiM draws
        self._build(generator)
        history, places = [], None
        if self.aligner is not None:
            if self.options.angles > 1:
                self.aligner.find_reference(pixels[:CONGEALED])
            turned = torch.cat([self.aligner.turn(part) for part in pixels.split(AT_A_TIME)])  # (n, 2, 3)
            history = self._learn_coarse(pixels, turned, generator)
            parts = zip(pixels.split(AT_A_TIME), turned.split(AT_A_TIME), strict=True)
            places = torch.cat([self.aligner(part, turn) for part, turn in parts])  # (n, 2, 3)
        if (history[-1].step if history else 0) == self.options.stages[0] and self.focused is not None:
            history = history + self._learn_fine(pixels, places, generator)
        self._fit_gaussians(pixels, places)
        return history

    def _build(self, generator: torch.Generator) -> None:
        o = self.options
        features = [o.feature_limits * limit for limit in o.limits] if o.alignment == "both" else None
        with drawn_from(generator):
            images = ImageAligner(self.extractor, o.limits, angles=o.angles, shrink=o.shrink) if o.alignment != "none" else None
            self.aligner = images.to(self.extractor.device) if images is not None else None
            self.focused = Focused(self.extractor, features).to(self.extractor.device) if o.stages[1] else None

    def _learn_coarse(self, pixels: Tensor, turned: Tensor, generator: torch.Generator) -> list[StepRecord]:
        """Image-level alignment."""
        o, aligner = self.options, self.aligner
        limits = o.jitter * torch.tensor(o.limits)

        def step(indices: Tensor, number: int) -> dict[str, Tensor]:
            drawn = (2 * torch.rand(len(indices), 4, generator=generator) - 1) * limits
            jitter = similarity(drawn.to(turned.device), pixels.shape[2:])
            return aligner.losses(pixels[indices], turned[indices.to(turned.device)], jitter, o.anchor)

        return self._trained(step, aligner, [{"params": aligner.locator.parameters()}], pixels, generator, "coarse")

    def _learn_fine(self, pixels: Tensor, places: Tensor | None, generator: torch.Generator) -> list[StepRecord]:
        """Feature-level alignment and the dense loss."""
        o, net, channels = self.options, self.focused, self.extractor.backbone.channels
        if places is None:
            places = torch.eye(2, 3, device=self.extractor.device).expand(len(pixels), -1, -1)
        with drawn_from(generator):
            heads = nn.ModuleList(nn.ModuleList([project(c), predict(c)]) for c in channels if o.contrast)
        heads.to(self.extractor.device)
        net.backbone.requires_grad_(o.contrast and o.backbone_rate > 0)

        def step(indices: Tensor, number: int) -> dict[str, Tensor]:
            batch = pixels[indices].to(places.device).float()
            place = places[indices.to(places.device)]
            maps = net(moved(batch, place) if self.aligner is not None else batch)
            weights = [seen(place, m.shape[2:]) for m in maps]
            if not o.contrast:
                return {"loss": torch.stack([pairwise_l2(m, w) for m, w in zip(unit(maps), weights, strict=True)]).mean()}
            shown = [g(m) for m, (g, _) in zip(maps, heads, strict=True)]
            losses = [dense_loss(h(z), z, w) for z, w, (_, h) in zip(shown, weights, heads, strict=True)]
            return {"loss": torch.stack(losses).mean()}

        groups = [{"params": [*net.aligners.parameters(), *heads.parameters()]}]
        if o.contrast and o.backbone_rate > 0:
            groups.append({"params": net.backbone.parameters(), "lr": o.backbone_rate})
        return self._trained(step, nn.ModuleList([net, heads]), groups, pixels, generator, "fine")

    def _trained(self, step, model, groups, pixels, generator, stage) -> list[StepRecord]:
        """The history of a stage; each has a checkpoint of its own, and steps are counted through both."""
        o, fine = self.options, stage == "fine"
        before = o.stages[0] if fine else 0
        later = [lambda r, tell=tell: tell(replace(r, step=r.step + before)) for tell in self._callbacks]
        file = f"{self._checkpoint}.{stage}" if self._checkpoint else None
        history = train(
            step, model, torch.optim.Adam(groups, lr=o.learning_rate), images=pixels, options=replace(o, steps=o.stages[fine]),
            generator=generator, identity=self._identity() | {"stage": stage}, what=f"{stage} alignment",
            callbacks=later, checkpoint=file,
        )  # fmt: skip
        return [replace(record, step=record.step + before) for record in history]

    def _fit_gaussians(self, pixels: Tensor, places: Tensor | None) -> None:
        rows = None
        for at in range(0, len(pixels), AT_A_TIME):
            few = slice(at, at + AT_A_TIME)
            part = self._features(pixels[few], places[few] if places is not None else None)[0]
            rows = self.limit.empty((len(pixels), *part.shape[1:]), part.dtype).values if rows is None else rows  # (n, H, W, d)
            rows[at : at + len(part)] = part
        found = fit_gaussians(rows.flatten(1, 2), self.options.epsilon, limit=self.limit, device=self._where)
        self.mean, self.factor = (one.unflatten(0, rows.shape[1:3]).to(self._where) for one in found)

    @torch.no_grad()
    def _features(self, pixels: Tensor, place: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(b, H, W, d) of the pictures at their places, and the movements that the finest level went through, (b, 2, 3) or None."""
        batch = pixels if place is None else moved(pixels.to(place.device).float(), place)
        maps = self.extractor.maps(batch) if self.focused is None else self.focused(batch)
        if self.focused is not None and self.focused.movements:
            place = after(place, self.focused.movements[0])
        joined = join_levels([neighbourhood_average(m, self.features.patch_size) for m in maps])
        return joined[..., self.chosen], place

    def _score(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        grid = tuple(-(-side // self.extractor.backbone.strides[0]) for side in pixels.shape[2:])
        if grid != self.mean.shape[:2]:
            found, known = ("{}x{}".format(*shape) for shape in (grid, self.mean.shape[:2]))
            raise ValueError(f"these images have {found} positions, the Gaussians {known}: fyd needs images of one size")
        features, place = self._features(pixels, self.aligner(pixels) if self.aligner is not None else None)
        rows, (h, w, d) = features.flatten(1, 2).to(self._where), self.mean.shape
        grids = mahalanobis(rows, self.mean.view(-1, d), self.factor.view(-1, d, d)).view(-1, h, w)
        if place is not None:
            grids = brought_back(grids, place.to(grids.device))
        return image_scores(grids), grids

    @property
    def unit(self) -> str:
        """What a score counts, for the axes of figures."""
        return "Mahalanobis distance"

    @property
    def _width(self) -> int:
        return min(self.options.dimension, self.extractor.width)

    @property
    def _where(self) -> torch.device:
        """Where Gaussians are computed: Apple's MPS has no float64."""
        return self.extractor.device if self.extractor.device.type == "cuda" else torch.device("cpu")

    def state_bytes(self, images: int, size: tuple[int, int]) -> int:
        """Return how many bytes Gaussians, transformers, reference and backbone hold, however many images there are."""
        other = copy.copy(self)
        other._build(torch.Generator())
        strides, channels, d = self.extractor.backbone.strides, self.extractor.backbone.channels, self._width
        gaussians = -(-size[0] // strides[0]) * -(-size[1] // strides[0]) * (d + d * d)
        small = [max(1, side // self.options.shrink) for side in size]
        shown = [c * -(-small[0] // s) * -(-small[1] // s) for s, c in zip(strides, channels, strict=True)]
        reference = sum(shown) if self.options.alignment != "none" and self.options.angles > 1 else 0
        return 4 * (gaussians + reference) + sum(t.nbytes for t in other._nets().values())

    def _is_fitted(self) -> bool:
        return self.factor is not None

    def _nets(self) -> dict[str, Tensor]:
        """All tensors of the networks, by name."""
        nets = {name: net for name in ("aligner", "focused") if (net := getattr(self, name)) is not None}
        return {f"{name}.{key}": tensor for name, net in nets.items() for key, tensor in net.state_dict().items()}

    def _state(self) -> dict[str, Tensor]:
        levels = {f"reference.{i}": level for i, level in enumerate(self.aligner.reference if self.aligner is not None else [])}
        return {"chosen": self.chosen, "mean": self.mean, "factor": self.factor} | levels | self._nets()

    def _take(self, file: ModelFile) -> None:
        super()._take(file)
        self._build(torch.Generator())
        for name, tensor in self._nets().items():
            file.check_shape(name, tuple(tensor.shape))
            tensor.copy_(file.tensors[name])
        d, grid = self._width, tuple(file.tensors["mean"].shape[:2]) if "mean" in file.tensors else ()
        for name, shape in (("chosen", (d,)), ("mean", (*grid, d)), ("factor", (*grid, d, d))):
            file.check_shape(name, shape)
        self.chosen = file.tensors["chosen"].to(self.extractor.device)
        self.mean, self.factor = (file.tensors[name].to(self._where) for name in ("mean", "factor"))
        if self.options.alignment != "none" and self.options.angles > 1:
            for i, c in enumerate(self.extractor.backbone.channels):
                level = file.tensors.get(f"reference.{i}", torch.empty(0))
                file.check_shape(f"reference.{i}", (c, *level.shape[1:]))
                self.aligner.reference.append(level.to(self.extractor.device))
        for net in (self.aligner, self.focused):
            if net is not None:
                net.eval().requires_grad_(False)
