"""VGG16 in PyTorch with torchvision's names: the reference of tests and benchmarks."""

from torch import nn

# The convolutions of `features` as the paper counts them, spelled out; a pool follows each group.
GROUPS = (
    ("conv1_1", "conv1_2"),
    ("conv2_1", "conv2_2"),
    ("conv3_1", "conv3_2", "conv3_3"),
    ("conv4_1", "conv4_2", "conv4_3"),
    ("conv5_1", "conv5_2", "conv5_3"),
)
WIDTHS = (64, 128, 256, 512, 512)


class TorchVGG16(nn.Module):
    """[B, 3, H, W] -> (logits [B, classes], stages as jaxmlic names them). fc_features is 4096 but in tests."""

    def __init__(self, with_norm, fc_features=4096, classes=1000):
        super().__init__()
        modules, self.ends, inputs = [], {}, 3
        for group, width in zip(GROUPS, WIDTHS, strict=True):
            for name in group:
                modules.append(nn.Conv2d(inputs, width, 3, padding=1))
                modules += [nn.BatchNorm2d(width)] if with_norm else []
                modules.append(nn.ReLU())
                self.ends[len(modules) - 1] = name
                inputs = width
            modules.append(nn.MaxPool2d(2, 2))
        self.ends[len(modules) - 1] = "pool5"
        self.features = nn.Sequential(*modules)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 7 * 7, fc_features), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(fc_features, fc_features), nn.ReLU(), nn.Dropout()),
            nn.Linear(fc_features, classes),
        )

    def forward(self, x):
        stages = {}
        for i, module in enumerate(self.features):
            x = module(x)
            if i in self.ends:
                stages[self.ends[i]] = x
        x = self.avgpool(x).flatten(1)
        for i, module in enumerate(self.classifier):
            x = module(x)
            if i in (1, 4):
                stages[{1: "fc6", 4: "fc7"}[i]] = x[:, :, None, None]
        return x, stages
