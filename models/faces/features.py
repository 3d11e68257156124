"""A crop as a short vector, without training: what a face detector's last network sees in it, and its colours."""

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from facenet_pytorch.models.mtcnn import ONet

from models.transforms import as_tensor

_COLOUR_PX = 24
_ONET_PX = 48
# Colours are within 0 to 1; ONet's activations are brought to a like size, so that neither drowns the other.
_ONET_SCALE = 0.25


class FaceFeatures:
    """float32[n, 2880] of crops: 24 × 24 RGB pixels (0–1), and the 1152 outputs of the last convolution of O-Net.

    O-Net (Zhang et al., 2016) is the third stage of MTCNN, whose weights come with facenet-pytorch. A linear classifier
    on these tells FS2K's attributes about as well as the networks published for it.
    """

    @cached_property
    def _onet(self) -> torch.nn.Module:
        network: torch.nn.Module = ONet().eval()
        # Everything up to the last convolution; what follows is boxes and landmarks.
        layers = ("conv1", "prelu1", "pool1", "conv2", "prelu2", "pool2", "conv3", "prelu3", "pool3", "conv4", "prelu4")
        return torch.nn.Sequential(*(getattr(network, name) for name in layers))

    @torch.inference_mode()
    def __call__(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features of crops uint8[n, S, S, 3]."""
        images = as_tensor(crops).permute(0, 3, 1, 2).float() / 255
        colours = _shrunk(images, _COLOUR_PX)
        margin = images.shape[2] // 8  # O-Net was trained on tighter boxes
        faces = images[:, :, margin : images.shape[2] - margin, margin : images.shape[3] - margin]
        # MTCNN's own scale: (pixel - 127.5) / 128.
        seen = self._onet((_shrunk(faces, _ONET_PX) * 255 - 127.5) / 128)
        spread = seen.flatten(1).std(dim=1, keepdim=True).clamp_min(1e-6)
        return torch.cat([colours.flatten(1), seen.flatten(1) / spread * _ONET_SCALE], dim=1).numpy()


def _shrunk(images: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
