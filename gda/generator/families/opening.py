"""Opens a generator of any family; each family is one module, chosen by `model_index.json`."""

from gda.generator.families.protocol import Model
from gda.generator.weights.directory import read_card


def load_model(name: str) -> Model:
    """Load a generator from a directory or `demo://glyphs`.

    Raises `MissingError` for a missing directory, `DataError` for an unknown family, pickled or damaged weights.
    """
    match read_card(name).family:
        case "pixel_cascade":
            from gda.generator.families.cascade import load_cascade

            return load_cascade(name)
        case "latent_unet":
            from gda.generator.families.latent import load_latent_unet

            return load_latent_unet(name)
        case "flow_transformer":
            from gda.generator.families.rectified_flow import load_flow_transformer

            return load_flow_transformer(name)
