"""MKD's map: which pixels are to blame for what two networks disagree on. Three gradients, and what is made of them.

Source: Salehi et al., *Multiresolution Knowledge Distillation for Anomaly Detection*, CVPR 2021 (arXiv 2011.11108); Smilkov
et al., *SmoothGrad* (arXiv 1706.03825); Springenberg et al., *Striving for Simplicity* (arXiv 1412.6806) for "guided".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp.scoring import pixel_maps

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)  # rise or stay level: the sign of a gradient means the same on both sides


def input_gradient(loss_of: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of images, (b,), and the gradient of each with respect to its own image, (b, 3, h, w).

    Args:
        loss_of: (b, 3, h, w) → (b,), each loss a function of its own image alone.
        x: (b, 3, h, w).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = loss_of(x)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient


def smooth_gradient(loss_of: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor, share: float) -> Tensor:
    """Return the mean gradient over noisy copies of every image.

    Args:
        loss_of: as for `input_gradient`.
        x: (b, 3, h, w).
        noise: (samples, 3, h, w) of variance 1; the same for all images, so that none depends on its company.
        share: the noise's standard deviation, as a share of each image's range.

    Returns:
        (b, 3, h, w).

    Source: Smilkov et al., *SmoothGrad*.
    """
    spread = share * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))  # (b, 1, 1, 1)
    total = torch.zeros_like(x)
    for sample in noise:  # (3, h, w)
        total += input_gradient(loss_of, x + spread * sample)[1]
    return total / len(noise)


def check_guidable(network: nn.Module) -> None:
    """Raise a ValueError if a network has other activations than rectifiers: guided backpropagation is not defined there."""
    found = [m for m in network.modules() if ".activation" in type(m).__module__ and not isinstance(m, RECTIFIERS)]
    if found:
        other = ", ".join(sorted({type(m).__name__ for m in found}))
        raise ValueError(f"guided backpropagation needs ReLUs, the backbone has {other}: take gradient 'plain' or 'smoothgrad'")


@contextmanager
def guided(*networks: nn.Module) -> Iterator[None]:
    """Cut negative gradients where they enter a rectifier of these networks from above, in passes inside the context.

    Raises:
        ValueError: if a network has activations that are no rectifiers.

    Source: Springenberg et al., *Striving for Simplicity*.
    """

    def cut(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp_min(0))

    for network in networks:
        check_guidable(network)
    rectifiers = {m for network in networks for m in network.modules() if isinstance(m, RECTIFIERS)}
    handles = [m.register_forward_hook(cut) for m in rectifiers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def opened(maps: Tensor, side: int) -> Tensor:
    """Return the grey opening of maps: erosion, then dilation; what is bright on less than a square goes.

    Thresholding the opened map is the same as opening the thresholded one, which is what the paper does.

    Args:
        maps: (b, h, w).
        side: of the square, odd; 1 leaves the maps as they are.

    Returns:
        (b, h, w), nowhere above `maps`.
    """
    eroded = -F.max_pool2d(-maps[:, None], side, stride=1, padding=side // 2)  # (b, 1, h, w)
    return F.max_pool2d(eroded, side, stride=1, padding=side // 2)[:, 0]


def saliency(gradient: Tensor, sigma: float, opening: int) -> Tensor:
    """Return maps of the pixels to blame, not negative: the absolute gradient over all colours, blurred, then opened.

    Args:
        gradient: (b, 3, h, w); the maps are (b, h, w).
        sigma: of the Gaussian, in pixels; 0 for none.
        opening: side of the opening's square, odd.
    """
    strength = gradient.abs().sum(1)  # (b, h, w)
    return opened(pixel_maps(strength, strength.shape[-2:], sigma), opening)
