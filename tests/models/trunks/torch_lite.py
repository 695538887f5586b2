"""EfficientNet-Lite0, 1 and 2 in PyTorch, from the paper's table: the reference of tests and benchmarks.

The names of its state dict are those of the published PyTorch weights.
"""

from torch import nn
from torch.nn import functional as F

# kernel, stride and expansion of the seven stages; features and blocks of each, by variant
STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
FEATURES = {0: (16, 24, 40, 80, 112, 192, 320), 1: (16, 24, 40, 80, 112, 192, 320), 2: (16, 24, 48, 88, 120, 208, 352)}
BLOCKS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow pads: the odd row and column go last."""

    def forward(self, x):
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups)


def _norm(features):
    return nn.BatchNorm2d(features, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    def __init__(self, inputs, kernel, stride, expansion, features):
        super().__init__()
        wide = inputs * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = SameConv(inputs, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = SameConv(wide, features, 1, bias=False), _norm(features)
        self.adds = stride == 1 and inputs == features

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class TorchLite(nn.Module):
    """[B, 3, H, W] -> (feature map [B, 1280, h, w], stages as jaxmlic names them)."""

    def __init__(self, variant=0):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), _norm(32)
        blocks, inputs, self.stage_ends = [], 32, {}
        tables = zip(STAGES, FEATURES[variant], BLOCKS[variant], strict=True)
        for stage, ((kernel, stride, expansion), features, repeats) in enumerate(tables, 1):
            for i in range(repeats):
                blocks.append(Block(inputs, kernel, stride if i == 0 else 1, expansion, features))
                inputs = features
            self.stage_ends[len(blocks) - 1] = f"stage{stage}"
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(inputs, 1280, 1, bias=False), _norm(1280)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        stages = {"stem": x}
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.stage_ends:
                stages[self.stage_ends[i]] = x
        x = F.relu6(self._bn1(self._conv_head(x)))
        stages["head"] = x
        return x, stages
