"""EfficientNet-Lite0 in PyTorch, from the paper's table: the reference of tests and benchmarks.

The names of its state dict are those of the published PyTorch weights.
"""

from torch import nn
from torch.nn import functional as F

# kernel, stride, expansion, features of the 16 blocks, spelled out
BLOCKS = (
    *((3, 1, 1, 16), (3, 2, 6, 24), (3, 1, 6, 24), (5, 2, 6, 40), (5, 1, 6, 40)),
    *((3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80), (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112)),
    *((5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (3, 1, 6, 320)),
)
STAGE_ENDS = {0: "stage1", 2: "stage2", 4: "stage3", 7: "stage4", 10: "stage5", 14: "stage6", 15: "stage7"}


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


class TorchLite0(nn.Module):
    """[B, 3, H, W] -> (feature map [B, 1280, h, w], stages as jaxmlic names them)."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), _norm(32)
        blocks, inputs = [], 32
        for kernel, stride, expansion, features in BLOCKS:
            blocks.append(Block(inputs, kernel, stride, expansion, features))
            inputs = features
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(320, 1280, 1, bias=False), _norm(1280)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        stages = {"stem": x}
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in STAGE_ENDS:
                stages[STAGE_ENDS[i]] = x
        x = F.relu6(self._bn1(self._conv_head(x)))
        stages["head"] = x
        return x, stages
