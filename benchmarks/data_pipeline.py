"""Augmented batches per second: ours beside torchvision's per-image pipeline with two worker processes, in one run.

    python -m benchmarks.data_pipeline

Both crop out of a reflected border, mirror, normalise and cut out; torchvision starts from images in memory, so that
nobody decodes files. Then: the time of our batch as a share of the training step at width 16.
"""

import statistics
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.train_step import CLASSES, medians_s, our_step
from model.augment import augment, draw
from model.command import run_command
from model.fit import random_data
from model.memory import keep_freed_memory
from model.meter import now_s
from model.recipes import s0
from model.train import best_device

BATCH = 512


@dataclass(frozen=True)
class Options:
    """Time augmentation."""

    examples: int = 20_000
    """images per timing"""
    repeats: int = 5
    """timings of each; the median is reported"""
    workers: int = 2
    """processes of torchvision's pipeline"""


class InMemory(Dataset):
    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
                # erases a square of 8 x 8 pixels, somewhere inside
                transforms.RandomErasing(p=1, scale=(1 / 16, 1 / 16), ratio=(1, 1)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), 0


def main(options: Options) -> None:
    keep_freed_memory()
    device = best_device()
    config = s0()
    data = random_data(options.examples, CLASSES, device)
    steps = options.examples // BATCH
    loader = DataLoader(
        InMemory([Image.fromarray(image.cpu().numpy()) for image in data.train_images]),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=True,
    )

    def ours(augment_by: str) -> None:
        chosen = replace(config, augment_by=augment_by)
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(options.examples, generator=generator).to(device)
        choices = draw(options.examples, chosen, generator).to(device)
        for step in range(steps):
            batch = slice(step * BATCH, (step + 1) * BATCH)
            images = data.train_images.index_select(0, order[batch])
            augment(images, choices.of(batch), chosen, data.mean, data.std)

    def torchvision_s() -> float:
        start_s = now_s(device)
        for images, _ in loader:
            images.to(device)
        return now_s(device) - start_s

    torchvision_s()  # the workers start
    theirs_s = statistics.median(torchvision_s() for _ in range(options.repeats)) / steps
    by_image_s, by_group_s = (
        seconds / steps for seconds in medians_s(device, options.repeats, lambda: ours("image"), lambda: ours("group"))
    )
    (step_s,) = medians_s(device, options.repeats, our_step(replace(config, width=16), device))
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, medians of {options.repeats}")
    print(f"ms per batch of {BATCH}:")
    print(f"  torchvision, {options.workers} workers  {1e3 * theirs_s:8.2f}")
    print(f"  ours, drawn by image    {1e3 * by_image_s:8.2f}  {theirs_s / by_image_s:.0f}x as fast")
    print(f"  ours, dealt by group    {1e3 * by_group_s:8.2f}  {theirs_s / by_group_s:.0f}x as fast")
    print(f"of a training step at width 16 ({1e3 * step_s:.0f} ms, fp32): {100 * by_image_s / step_s:.2f}%")


if __name__ == "__main__":
    run_command(main, Options, prog="python -m benchmarks.data_pipeline")
