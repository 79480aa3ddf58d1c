"""ResNets for 32×32 images: He et al. 2015a, section 4.2."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smallbatch.errors import ConfigError
from smallbatch.models.norm import Normalization, initialise


class Block(nn.Module):
    """conv-norm-ReLU-conv-norm, plus the shortcut, then ReLU; shortcut A: strided identity, zero-padded channels."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Normalization) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(outputs), norm(outputs)
        bias = isinstance(self.norm1, nn.Identity)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if self.extra:
            before = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
        return F.relu(y + x, inplace=True)


class ResNet(nn.Module):
    """6n + 2 layers in three stages of n blocks, widths 16, 32, 64; global average pool; one linear layer.

    Input (N, channels, H, W), output logits (N, classes). With BN, 3 channels and 10 classes:
    75,290 / 269,722 / 464,154 parameters at depth 8 / 20 / 32. Raises ConfigError for other depths than 6n + 2.
    """

    def __init__(self, depth: int, classes: int, channels: int, norm: Normalization) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ConfigError(f"model.depth={depth}: must be 6n + 2, such as 8, 20, 32")
        self.norm = norm(16)
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=isinstance(self.norm, nn.Identity))
        blocks, inputs = [], 16
        for stage, width in enumerate((16, 32, 64)):
            for i in range((depth - 2) // 6):
                blocks.append(Block(inputs, width, 2 if stage and i == 0 else 1, norm))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(64, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(x)), inplace=True))
        # A mean, since AdaptiveAvgPool2d's backward is not deterministic on CUDA.
        return self.linear(torch.mean(x, dim=(2, 3)))
