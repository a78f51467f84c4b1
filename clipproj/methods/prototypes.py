"""Visual prototypes: what stands for the images of a class in a domain, given or synthesised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipproj.methods.domains import Cells
from clipproj.methods.inputs import above_zero, integer, unit_rows
from clipproj.models.encoder import check_tower, evaluating, pixel_dtype, tower_features
from clipproj.models.heads import check_module, unwrap
from clipproj.models.text import Progress
from clipproj.refusal import Refusal

# Lip's recipe is for 224 pixels: a step of length 25 where noise has length sqrt(3) * 224, and
# jitter of 16 pixels. Both scale with the image.
_STEP = 25 / (3**0.5 * 224)
_JITTER = 16 / 224
_DECAY = 1e-3
_BLUR_EVERY, _BLUR_SIGMA = 10, 0.5


def feature_prototypes(features: Tensor, names: Sequence[str], domains: Sequence[str]) -> Cells:
    """The mean image of each class in each domain: one row for each pair that has images.

    Args:
        features: [n, d] image features, of any length: each image counts the same.
        names, domains: n labels each.

    Raises:
        TypeError, ValueError: as `Cells` does; also where the images of a pair cancel.
    """
    every = Cells(features, tuple(names), tuple(domains))
    pairs = list(zip(every.names, every.domains, strict=True))
    groups: dict[tuple[str, str], list[int]] = {}
    for row, pair in enumerate(pairs):
        groups.setdefault(pair, []).append(row)
    means = torch.stack([every.rows[rows].double().mean(dim=0) for rows in groups.values()])
    return Cells(means, tuple(pair[0] for pair in groups), tuple(pair[1] for pair in groups))


def synthesize(
    model: nn.Module,
    texts: Cells,
    *,
    space: str = "feature",
    start: Tensor | None = None,
    steps: int | None = None,
    rate: float = 0.1,
    preprocess: Any = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Cells:
    """What images of the texts might be, made without an image: the same cells, other rows.

    - "feature": `z <- norm(z + rate t)` from `start`; the model is not asked. Such rows show the
      domain as strongly as texts do, which images do not: no measure of `domain_gain`.
    - "pixel": an image x, from noise, climbs cos(encode_image(x), t) as in Lip (arXiv 2407.07485,
      the canonical image of 2512.14113): steps along the gradient that get shorter, L2 decay 1e-3,
      jitter of 16 in 224 pixels, a blur of sigma 0.5 every 10 steps, pixels kept in range. Its
      feature is the row. On the embedded model (100 steps) such rows show monochrome drawing at a
      gain of 0.41 where images show it at 0.54, flat colour at 0.65 for 0.21.

    Parameters of the model and their gradients are not touched; dropout and the like are off
    meanwhile. The same seed, texts and batch size give the same rows on one machine.

    Args:
        model: open_clip or OpenAI CLIP (`encode_image`), or Hugging Face (`get_image_features`).
        texts: the targets.
        start: [d], where "feature" begins: the mean image feature, so that the gap between the
            towers stays. None: a seeded random direction.
        steps: None: 10 in feature space, 200 in pixel space.
        rate: of "feature".
        preprocess: for mean and standard deviation of the pixels: open_clip's transform, or a
            Hugging Face image processor. None: what the model says of itself (open_clip's do).
        batch_size: images at once.
        progress: called with (steps done, steps in all), over all batches.

    Raises:
        TypeError: for a model without an image encoder, texts that are no Cells, steps or a
            batch_size that are no integers.
        ValueError: for an unknown space, options out of range, a start of another width or not
            finite, images whose mean and size are not known, features of another width.
    """
    op = "synthesize"
    check_module(op, model)
    model = unwrap(model)
    check_tower(op, model, "image")
    if not isinstance(texts, Cells):
        raise TypeError(f"{op}: texts must be Cells, got {type(texts).__name__}")
    if space not in ("feature", "pixel"):
        raise Refusal(op, "space", f'must be "feature" or "pixel", got {space!r}')
    steps = (10 if space == "feature" else 200) if steps is None else steps
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        integer(op, name, value, least=1)
    rate, seed = above_zero(op, "rate", rate), integer(op, "seed", seed)
    if space == "feature":
        return replace(texts, rows=_climb_features(texts.rows, start, steps, rate, seed, progress))
    if start is not None:
        raise Refusal(op, "start", 'must be None in space "pixel", which begins with noise')
    frame = _frame(model, preprocess)
    total = steps * -(-len(texts) // batch_size)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    rows = []
    # a caller's inference mode or no_grad must not keep gradients from being taken
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        for first in range(0, len(texts), batch_size):
            targets = texts.rows[first : first + batch_size].clone()
            rows.append(_climb_pixels(model, targets, frame, steps, seed + first, seed, tick))
    return replace(texts, rows=torch.cat(rows).to(texts.rows.device))


def _climb_features(
    targets: Tensor, start: Tensor | None, steps: int, rate: float, seed: int, progress: Any
) -> Tensor:
    width = targets.shape[1]
    if start is None:
        start = _noise((width,), seed)
    if not isinstance(start, Tensor) or start.shape != (width,):
        got = list(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise Refusal("synthesize", "start", f"must be [{width}] as the texts are, got {got}")
    z = unit_rows("synthesize", "start", start[None]).to(targets.device)
    z, targets = z.expand(len(targets), -1), targets.double()
    for step in range(steps):
        z = F.normalize(z + rate * targets, dim=1)
        if progress is not None:
            progress(step + 1, steps)
    return z


@dataclass(frozen=True)
class _Frame:
    """How images look to a model: pixels [3, height, width] with this mean and deviation."""

    size: tuple[int, int]
    mean: Tensor  # [3, 1, 1]
    std: Tensor


def _frame(model: nn.Module, preprocess: Any) -> _Frame:
    visual = getattr(model, "visual", None)
    size: Any = getattr(visual, "image_size", None)
    mean: Any
    std: Any
    mean, std = getattr(visual, "image_mean", None), getattr(visual, "image_std", None)
    config = getattr(model, "config", None)
    if size is None and config is not None:
        size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if size is None:  # OpenAI's package
        size = getattr(visual, "input_resolution", None)
    if preprocess is not None:
        parts = getattr(preprocess, "transforms", ())
        source = next((one for one in parts if hasattr(one, "std")), None)
        if source is not None:  # torchvision's Normalize
            mean, std = source.mean, source.std
        else:  # a processor, or the image processor in one
            source = getattr(preprocess, "image_processor", preprocess)
            mean = getattr(source, "image_mean", mean)
            std = getattr(source, "image_std", std)
    if None in (size, mean, std):
        raise Refusal(
            "synthesize",
            "preprocess",
            "must tell mean and standard deviation of the pixels, as "
            "open_clip's transform or a Hugging Face image processor does, and the model its image "
            f"size, got {type(preprocess).__name__} for {type(model).__name__}",
        )
    height, width = size if isinstance(size, tuple | list) else (size, size)
    parameter = next(model.parameters())
    mean, std = (
        torch.as_tensor(tuple(v), dtype=torch.float32, device=parameter.device).view(3, 1, 1)
        for v in (mean, std)
    )
    return _Frame((int(height), int(width)), mean, std)


def _climb_pixels(
    model: nn.Module, targets: Tensor, frame: _Frame, steps: int, noise: int, moves: int,
    tick: Callable[[], None],
) -> Tensor:  # fmt: skip
    """[b, d] features of the images that were found; noise and moves are seeds."""
    device = frame.mean.device
    dtype = pixel_dtype(model)
    low, high = (0 - frame.mean) / frame.std, (1 - frame.mean) / frame.std
    start = [_noise((3, *frame.size), noise + i) for i in range(len(targets))]
    x = torch.stack(start).to(device).clamp(low, high)
    targets = targets.to(device)
    jitter = torch.Generator().manual_seed(moves)  # alike for every batch
    reach = [round(_JITTER * side) for side in frame.size]
    length = _STEP * (3 * frame.size[0] * frame.size[1]) ** 0.5

    def encoded(pixels: Tensor) -> Tensor:
        out = tower_features("synthesize", model, "image", {"pixel_values": pixels.to(dtype)})
        if out.shape != targets.shape:
            raise Refusal(
                "synthesize",
                "texts",
                f"must have the width of the model's image features, got "
                f"{list(targets.shape)} for features {list(out.shape)}",
            )
        return F.normalize(out.float(), dim=1)

    for step in range(steps):
        x = x.detach().requires_grad_()
        shift = [int(torch.randint(-r, r + 1, (1,), device="cpu", generator=jitter)) for r in reach]
        cosine = (encoded(torch.roll(x, shift, dims=(2, 3))) * targets).sum()
        (gradient,) = torch.autograd.grad(cosine, x)
        with torch.no_grad():
            gradient = _unit(gradient) - _DECAY * _unit(x)
            # shorter towards the end: a step of full length does not settle
            x = (x + length * (1 - step / steps) * _unit(gradient)).clamp(low, high)
            if (step + 1) % _BLUR_EVERY == 0 and step + 1 < steps:
                x = _blurred(x)
        tick()
    with torch.no_grad():
        return encoded(x.detach())


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal and float32, whatever the caller's default dtype and device: the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float32, device="cpu", generator=generator)


def _unit(x: Tensor) -> Tensor:
    """Each image divided by its length."""
    return F.normalize(x.flatten(1), dim=1).view_as(x)


def _blurred(x: Tensor) -> Tensor:
    taps = torch.arange(-2, 3, dtype=x.dtype, device=x.device)
    taps = torch.exp(-taps.square() / (2 * _BLUR_SIGMA**2))
    taps = (taps / taps.sum()).expand(3, 1, -1)
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    with torch.autocast(x.device.type, enabled=False):  # a caller's would round the pixels
        across = F.conv2d(padded, taps[:, :, None, :], groups=3)
        return F.conv2d(across, taps[:, :, :, None], groups=3)
