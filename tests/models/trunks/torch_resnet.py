"""ResNet in PyTorch with torchvision's names, written from the paper's table: the reference of tests and benchmarks."""

from torch import nn
from torch.nn import functional as F


def _conv(inputs, features, kernel, stride=1):
    return nn.Conv2d(inputs, features, kernel, stride, kernel // 2, bias=False)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(_conv(inputs, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(_conv(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


BLOCKS = {18: (Basic, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3)), 101: (Bottleneck, (3, 4, 23, 3))}


class TorchResNet(nn.Module):
    """[B, 3, H, W] -> (logits [B, classes], stages as jaxmlic names them)."""

    def __init__(self, depth, classes=1000):
        super().__init__()
        block, repeats = BLOCKS[depth]
        self.conv1, self.bn1 = _conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        inputs = 64
        for layer, count in enumerate(repeats, start=1):
            width, blocks = 32 * 2**layer, []
            for i in range(count):
                blocks.append(block(inputs, width, 2 if layer > 1 and i == 0 else 1))
                inputs = width * block.expansion
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        stages = {"stem": x}
        x = F.max_pool2d(x, 3, 2, 1)
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            x = stages[layer] = getattr(self, layer)(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)), stages
