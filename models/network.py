"""torchvision backbones with one linear layer for all heads of a task."""

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision.models
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from infra.errors import UserError
from models.tasks.base import Head

# Not from list_models: squeezenet ends in a convolution; googlenet and inception_v3 add auxiliary outputs in training
# and switch on a further input transform together with ImageNet weights, which a saved scorer would not know of.
_UNSUPPORTED = frozenset({"squeezenet1_0", "squeezenet1_1", "googlenet", "inception_v3"})


class Network(nn.Module):
    """A backbone without its own last layer, dropout, and one linear layer whose outputs are split by head.

    The state-dict keys are ``backbone.*`` (torchvision's names), ``classifier.weight`` and ``classifier.bias``,
    whatever the dropout.

    Where ``ordinal``, the last layer answers for each class but the last whether the truth lies above it, given that it
    does not lie below (CORN: Shi, Cao, Raschka, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On
    Conditional Probabilities", 2021); what comes out are the classes' log-probabilities, which are logits as well.
    """

    def __init__(
        self,
        backbone_name: str,
        backbone: nn.Module,
        num_features: int,
        heads: Sequence[Head],
        *,
        dropout: float = 0.0,
        ordinal: bool = False,
    ):
        super().__init__()
        self.backbone_name = backbone_name
        self.heads = tuple(heads)
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.ordinal = ordinal
        self._num_outputs = [len(head.classes) - ordinal for head in heads]
        self.classifier = nn.Linear(num_features, sum(self._num_outputs))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits per head, float[n, C] each, of images float[n, 3, size, size]."""
        outputs: torch.Tensor = self.classifier(self.dropout(self.backbone(images)))
        parts = torch.split(outputs, self._num_outputs, dim=1)
        return {
            head.name: _log_probabilities(part) if self.ordinal else part
            for head, part in zip(self.heads, parts, strict=True)
        }


def _log_probabilities(conditional: torch.Tensor) -> torch.Tensor:
    """Log-probabilities float32[n, C] of logits float[n, C - 1] of "above this class, given not below it"."""
    conditional = conditional.float()
    above = F.logsigmoid(conditional).cumsum(1)
    reached = F.pad(above, (1, 0))
    return torch.cat([reached[:, :-1] + F.logsigmoid(-conditional), reached[:, -1:]], dim=1)


def answer(network: Network, images: torch.Tensor, *, mirror: bool) -> dict[str, torch.Tensor]:
    """Logits per head, float[n, C] each; with ``mirror`` the means of the images' and their mirror images' logits."""
    logits: dict[str, torch.Tensor] = network(images)
    if not mirror:
        return logits
    mirrored: dict[str, torch.Tensor] = network(images.flip(3))
    return {name: (values + mirrored[name]) / 2 for name, values in logits.items()}


def backbone_names() -> list[str]:
    """torchvision's classification models that can be a backbone, sorted."""
    return [name for name in list_models(module=torchvision.models) if name not in _UNSUPPORTED]


def build_network(
    backbone: str,
    heads: Sequence[Head],
    *,
    weights: str = "none",
    dropout: float = 0.0,
    ordinal: bool = False,
    input_size: int | None = None,
) -> Network:
    """A network for ``heads``, its last layer always fresh.

    Args:
        backbone: A name of ``backbone_names``.
        heads: The task's heads.
        weights: Where the backbone's weights come from: ``none`` (random), ``imagenet`` (torchvision's, downloaded
            unless cached), or the path of a .safetensors file: a torchvision state dict, or a scorer's weights. A
            scorer with the same outputs gives its last layer too.
        dropout: Probability of dropping a feature before the last layer, in training.
        ordinal: The classes of every head are steps of a scale, answered one after the other.
        input_size: Side of the input in pixels; where given, it is checked that the backbone takes it.

    Raises:
        UserError: An unknown backbone, weights that cannot be had or do not fit, or a size the backbone refuses.
    """
    check_backbone(backbone)
    if input_size is not None:
        check_input_size(backbone, heads, input_size)
    assembled = partial(_assembled, backbone, heads=heads, dropout=dropout, ordinal=ordinal)
    if weights == "none":
        return assembled(get_model(backbone))
    if weights == "imagenet":
        return assembled(_imagenet_model(backbone))
    if weights.endswith(".safetensors"):
        network = assembled(get_model(backbone))
        _load_weights(network, Path(weights))
        return network
    raise UserError(f"weights {weights!r} are neither 'none', 'imagenet' nor the path of a .safetensors file")


def empty_network(backbone: str, heads: Sequence[Head], *, ordinal: bool = False) -> Network:
    """A network without memory for its weights (on the meta device): for its shapes, or to be filled by loading."""
    check_backbone(backbone)
    try:
        with torch.device("meta"):
            model = get_model(backbone)
    except NotImplementedError:  # regnet reads tensors while it computes its widths
        model = get_model(backbone).to("meta")
    with torch.device("meta"):
        return _assembled(backbone, model, heads=heads, ordinal=ordinal)


def check_backbone(name: str) -> None:
    """Refuse a backbone that does not exist or cannot be used.

    Raises:
        UserError: Names near matches.
    """
    names = backbone_names()
    if name in _UNSUPPORTED:
        raise UserError(f"backbone {name!r} is not supported: its outputs are not one linear layer; try resnet18")
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, n=4, cutoff=0.4)
        raise UserError(
            f"there is no backbone {name!r} in torchvision; "
            + (f"did you mean {', '.join(near)}?" if near else f"for example {', '.join(names[:4])}")
        )


def check_input_size(backbone: str, heads: Sequence[Head], size: int) -> None:
    """Refuse a backbone, or a size that it does not take, without the memory that a network takes.

    Raises:
        UserError: Names near matches, or what the backbone says.
    """
    network = empty_network(backbone, heads).eval()
    try:
        network(torch.empty(1, 3, size, size, device="meta"))
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"backbone {backbone!r} does not take inputs of {size} × {size} pixels ({error}); 224 suits every backbone"
        ) from error


def _assembled(
    name: str, model: nn.Module, *, heads: Sequence[Head], dropout: float = 0.0, ordinal: bool = False
) -> Network:
    path, last = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    model.set_submodule(path, nn.Identity())
    return Network(name, model, last.in_features, heads, dropout=dropout, ordinal=ordinal)


def _imagenet_model(backbone: str) -> nn.Module:
    weights = get_model_weights(backbone).DEFAULT
    try:
        model: nn.Module = get_model(backbone, weights=weights)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"cannot download the ImageNet weights of {backbone!r} from {weights.url} ({error}); without a network, "
            "save them as .safetensors elsewhere and give that file's path as weights, or use 'none'"
        ) from error
    return model


def _load_weights(network: Network, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable .safetensors file ({error})") from error
    expected = network.backbone.state_dict()
    prefix = "backbone." if any(name.startswith("backbone.") for name in tensors) else ""
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    # What is left over is the file's own last layer, which stays new but for a scorer that answers the same.
    differing = [name for name in expected if name not in found or found[name].shape != expected[name].shape]
    if differing:
        raise UserError(
            f"{path} does not hold weights of backbone {network.backbone_name!r}: "
            f"{len(differing)} of {len(expected)} tensors are absent or of another shape, first {differing[0]!r}"
        )
    network.backbone.load_state_dict({name: found[name] for name in expected})
    head = network.classifier.state_dict()
    own = {name: tensors.get(f"classifier.{name}") for name in head}
    if prefix and all(tensor is not None and tensor.shape == head[name].shape for name, tensor in own.items()):
        network.classifier.load_state_dict(own)
