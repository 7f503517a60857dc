"""The registered model as MLflow runs it; logged as source code, so that nothing is pickled and serving needs torch and timm alone."""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import timm
import torch
import torch.nn.functional as F
from mlflow.pyfunc import PythonModel


class ServedClassifier(PythonModel):
    """uint8 RGB images [n, height, width, 3] in, class probabilities float32 [n, classes] out."""

    def load_context(self, context: Any) -> None:
        """Build the network from its timm directory; weights are safetensors."""
        folder = Path(context.artifacts["classifier"])
        self.card = json.loads((folder / "classifier.json").read_text("utf-8"))
        if not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder}: no model.safetensors; timm would look for a pickle instead")
        self.network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    @torch.no_grad()
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Probabilities; images of another size are scaled (short side, antialiased) and cropped about the centre."""
        images = torch.from_numpy(np.ascontiguousarray(model_input)).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(self.card[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        inputs = (_fit(images, self.card["image_size"], self.card.get("interpolation")) / 255 - mean) / std
        return np.concatenate([self.network(part).softmax(dim=1).numpy() for part in inputs.split(256)])


def _fit(images: torch.Tensor, size: int, interpolation: str | None) -> torch.Tensor:
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    mode = "bicubic" if interpolation == "bicubic" else "bilinear"
    scaled = F.interpolate(images, (height, width), mode=mode, antialias=True, align_corners=False).round().clamp(0, 255)
    top, left = (height - size) // 2, (width - size) // 2
    return scaled[..., top : top + size, left : left + size]


mlflow.models.set_model(ServedClassifier())
