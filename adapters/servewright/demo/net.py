"""The demonstration's network in torch: two convolutions and a linear layer. It stands alone inside an archive."""

import torch
from torch import nn


class DigitsNet(nn.Module):
    """Map pictures ``[n, 1, 8, 8]`` to class scores ``[n, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32 * 4 * 4, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        scores: torch.Tensor = self.layers(image)
        return scores
