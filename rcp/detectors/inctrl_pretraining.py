"""InCTRL's pretraining: the features of other products' labelled images, gathered once, and the heads that learn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcp.data import Category
from rcp.detectors.inctrl_heads import Heads, InCTRLOptions, focal_loss, nearest_residual, residual_map
from rcp.features import Images
from rcp.pixels import AT_A_TIME
from rcp.training import Callback, train


@dataclass(frozen=True)
class Auxiliary:
    """The frozen features of N labelled queries and of P prompts of each of M categories: all that the pretraining needs.

    Attributes:
        residuals: per level (N, P, H_l, W_l): to each prompt image, so that those to any K of them are their minimum.
        queries: (N, C) embeddings.
        prompts: (M, P, C) embeddings.
        category: (N,) int64.
        labels: (N,) float32, 0 or 1.
        text: (N,) s_T.
    """

    residuals: list[Tensor]
    queries: Tensor
    prompts: Tensor
    category: Tensor
    labels: Tensor
    text: Tensor

    def balanced(self) -> Tensor:
        """Return query numbers among which normal and anomalous ones are equally many: the fewer are repeated."""
        groups = [(self.labels == label).nonzero()[:, 0] for label in (0, 1)]
        size = max(map(len, groups))
        return torch.cat([group.repeat(-(-size // len(group)))[:size] for group in groups])

    def compared(self, which: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `Heads` take, of queries `which` (b,) and prompts `chosen` (b, K) of each one's category."""
        residual = residual_map([level[which[:, None], chosen].amin(1) for level in self.residuals])
        return residual, self.queries[which], self.prompts[self.category[which][:, None], chosen], self.text[which]


def gather(
    categories: Sequence[Category],
    options: InCTRLOptions,
    generator: torch.Generator,
    read: Callable[[Images], Tensor],
    described: Callable[[Tensor], tuple[list[Tensor], Tensor]],
    text: Callable[[Tensor], Tensor],
) -> Auxiliary:
    """Return the frozen features of all queries and prompts of the auxiliary categories.

    Args:
        categories: with normal and anomalous test images (the queries); prompts are drawn from their training images.
        options: `pool` and `training_prompts`.
        generator: draws the prompts, on the CPU.
        read: images → (n, 3, h, w) uint8.
        described: pixels → per level (n, C_l, H_l, W_l), and (n, C) embeddings.
        text: pixels → (n,) s_T.

    Raises:
        ValueError: if there are too few training images, no anomalous or no normal test images, or images of several sizes.
    """
    size = min([options.pool, *(len(one.train) for one in categories)])
    if not categories or size < max(options.training_prompts):
        raise ValueError(f"each auxiliary category needs {max(options.training_prompts)} training images to draw prompts from")
    labels = torch.cat([torch.from_numpy(one.test.labels) for one in categories])
    if set(labels.tolist()) != {0, 1}:
        raise ValueError("the auxiliary categories need test images of both kinds, normal and anomalous")
    residuals, queries, prompts, texts = [], [], [], []
    for category in categories:
        drawn = torch.randperm(len(category.train), generator=generator)[:size].sort().values
        levels, embeddings = described(read([category.train.paths[i] for i in drawn]))
        prompts.append(embeddings)
        for part in read(category.test).split(AT_A_TIME):
            maps, embedding = described(part)
            residuals.append([nearest_residual(*pair).cpu() for pair in zip(maps, levels, strict=True)])
            queries.append(embedding)
            texts.append(text(part))
    if len({part[0].shape[1:] for part in residuals}) > 1:
        raise ValueError("the auxiliary images must come out at one size: give FeatureSettings a crop")
    owner = torch.cat([torch.full((len(one.test),), i) for i, one in enumerate(categories)])
    columns = [torch.cat(column) for column in zip(*residuals, strict=True)]
    return Auxiliary(columns, torch.cat(queries).cpu(), torch.stack(prompts).cpu(), owner, labels.float(), torch.cat(texts).cpu())


def pretrained(
    auxiliary: Auxiliary,
    options: InCTRLOptions,
    generator: torch.Generator,
    device: torch.device,
    record: dict,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
) -> Heads:
    """Return heads that have learned what a difference means.

    Args:
        auxiliary: what they learn from.
        options: steps, rates, γ, which residuals there are.
        generator: draws weights, queries, and the number of prompts of each step.
        device: where they learn.
        record: what decides the pretraining; a checkpoint has to agree with it, and the heads keep it, with their history.
        callbacks: called with a `StepRecord` some twenty times.
        checkpoint: a file that is written as often, and from which a killed pretraining goes on.

    Source: section 3.6: a focal loss of the final score, and one of the image score.
    """
    slots, ks = auxiliary.balanced(), options.training_prompts
    heads = Heads(auxiliary.queries.shape[1], options, generator).to(device)
    groups = [{"params": list(heads.map_head.parameters())}]
    if options.image:
        slow = [*heads.adapter.parameters(), *heads.image_head.parameters()]
        groups.append({"params": slow, "lr": options.learning_rate * options.image_rate})

    def step(indices: Tensor, number: int) -> dict[str, Tensor]:
        which = slots[indices]  # (b,)
        k = ks[int(torch.randint(len(ks), (), generator=generator))]
        chosen = torch.rand(len(which), auxiliary.prompts.shape[1], generator=generator).argsort(1)[:, :k]  # (b, K)
        final, image = heads(*(tensor.to(device) for tensor in auxiliary.compared(which, chosen)))
        labels = auxiliary.labels[which].to(device)
        losses = {"final": focal_loss(final, labels, options.gamma)}
        if options.image:
            losses["image"] = focal_loss(image, labels, options.gamma)
        return {"loss": sum(losses.values())} | losses

    history = train(
        step, heads, torch.optim.Adam(groups, lr=options.learning_rate), images=auxiliary.queries[slots],
        options=options.training, generator=generator, identity=record, what="pretraining",
        callbacks=callbacks, checkpoint=checkpoint,
    )  # fmt: skip
    heads.record = record | {"history": [asdict(one) for one in history]}
    return heads
