"""Training a LightningModule as it is: Lightning's own Trainer on every rank, with the gradient of psgc."""

try:
    import lightning as _lightning  # noqa: F401
except ImportError as error:
    raise ImportError(f"psgc.lightning needs Lightning ({error}); install it with: pip install lightning") from None

from psgc.lightning.fitting import fit

__all__ = ["fit"]
