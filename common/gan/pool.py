"""A history of generated images, from which a discriminator is shown older ones too."""

import random

import torch
from torch import Tensor


class ImagePool:
    """Until it is full, images are stored and returned; then each is, by even chance, exchanged for a stored one.

    size: images held; 0 passes everything through. rng: one uniform draw an image once the pool is full, then one
    integer where it was above one half. Images stay on their device.
    """

    def __init__(self, size: int = 50, rng: random.Random | None = None):
        self.size, self.rng = size, rng or random.Random(0)
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """A batch [B, C, H, W] of the same size, detached."""
        if self.size == 0:
            return images.detach()
        chosen = []
        for image in images.detach().unbind():
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif self.rng.uniform(0, 1) > 0.5:
                place = self.rng.randint(0, self.size - 1)
                image, self.images[place] = self.images[place], image.clone()
            chosen.append(image)
        return torch.stack(chosen)

    def state_dict(self) -> dict:
        """The images [n, C, H, W] and where the draws stand, as plain content."""
        version, words, gauss = self.rng.getstate()
        images = torch.stack(self.images) if self.images else torch.zeros(0)
        return {"images": images, "rng": [version, torch.tensor(words), gauss]}

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`; the images come to lie where the state's are."""
        version, words, gauss = state["rng"]
        self.images = list(state["images"].unbind())
        self.rng.setstate((version, tuple(words.tolist()), gauss))
