"""Trains an unchanged LightningModule: every rank runs Lightning's Trainer, and psgc computes the gradient."""

try:
    import lightning as _lightning  # noqa: F401
except ImportError as error:
    raise ImportError(f"psgc.lightning needs Lightning ({error}); install it with: pip install lightning") from None

from psgc.lightning.fitting import fit

__all__ = ["fit"]
