"""The paper's reduced AlexNet for 32×32 images (section 5.1)."""

from torch import Tensor, nn

from smallbatch.models.norm import Normalization, initialise


class AlexNet(nn.Module):
    """5 convolutions (kernels 5,3,3,3,3; channels 16,48,96,64,64), max-pools 3×3 stride 2, 2 hidden layers of 256.

    The pools follow convolutions 1, 2 and 5 and take 32→16→8→4 (our reading). Input (N, channels, 32, 32),
    output logits (N, classes); 472,794 parameters for 3 channels and 10 classes without normalisation.
    """

    def __init__(self, classes: int, channels: int, norm: Normalization) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, kernel: int, pool: bool = False) -> list[nn.Module]:
            after = norm(outputs)
            bias = isinstance(after, nn.Identity)
            layers = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias), after, nn.ReLU(inplace=True)]
            return [*layers, nn.MaxPool2d(3, 2, padding=1)] if pool else layers

        def dense(inputs: int, outputs: int) -> list[nn.Module]:
            after = norm(outputs, dense=True)
            return [nn.Linear(inputs, outputs, bias=isinstance(after, nn.Identity)), after, nn.ReLU(inplace=True)]

        self.features = nn.Sequential(
            *conv(channels, 16, 5, pool=True),
            *conv(16, 48, 3, pool=True),
            *conv(48, 96, 3),
            *conv(96, 64, 3),
            *conv(64, 64, 3, pool=True),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), *dense(64 * 4 * 4, 256), *dense(256, 256), nn.Linear(256, classes)
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
