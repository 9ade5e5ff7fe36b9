"""torchvision's blocks without the in-place changes of their forward passes.

Several of torchvision's networks overwrite a layer's output (`out += identity`, `F.relu(x,
inplace=True)`). What looks at that output afterwards - a gate, a hook for per-example gradients -
then sees another tensor. The blocks here compute the same function and overwrite nothing; their
parameters and state keys are untouched.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import (
    convnext,
    densenet,
    efficientnet,
    inception,
    mobilenetv3,
    resnet,
)
from torchvision.models.googlenet import BasicConv2d as GoogLeNetBasicConv2d


class _BasicBlock(resnet.BasicBlock):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        skipped = x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(residual + skipped)
        return activated


class _Bottleneck(resnet.Bottleneck):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        reduced = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(reduced)))))
        skipped = x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(residual + skipped)
        return activated


class _InvertedResidualV3(mobilenetv3.InvertedResidual):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.block(input)
        return result + input if self.use_res_connect else result


class _MBConv(efficientnet.MBConv):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.block(input)
        return self.stochastic_depth(result) + input if self.use_res_connect else result


class _FusedMBConv(efficientnet.FusedMBConv):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.block(input)
        return self.stochastic_depth(result) + input if self.use_res_connect else result


class _CNBlock(convnext.CNBlock):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.stochastic_depth(self.layer_scale * self.block(input))
        return result + input


class _DenseNet(densenet.DenseNet):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        maps = functional.relu(self.features(x))
        pooled = functional.adaptive_avg_pool2d(maps, (1, 1))
        logits: Tensor = self.classifier(torch.flatten(pooled, 1))
        return logits


class _GoogLeNetConv(GoogLeNetBasicConv2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _InceptionConv(inception.BasicConv2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


OUT_OF_PLACE: dict[type[nn.Module], type[nn.Module]] = {
    resnet.BasicBlock: _BasicBlock,
    resnet.Bottleneck: _Bottleneck,
    mobilenetv3.InvertedResidual: _InvertedResidualV3,
    efficientnet.MBConv: _MBConv,
    efficientnet.FusedMBConv: _FusedMBConv,
    convnext.CNBlock: _CNBlock,
    densenet.DenseNet: _DenseNet,
    GoogLeNetBasicConv2d: _GoogLeNetConv,
    inception.BasicConv2d: _InceptionConv,
}


def out_of_place(model: nn.Module) -> nn.Module:
    """Let a freshly built network of torchvision overwrite nothing; it is changed and returned."""
    for module in model.modules():
        module.__class__ = OUT_OF_PLACE.get(type(module), type(module))
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010 (the attribute is not nn.Module's own)
    return model
