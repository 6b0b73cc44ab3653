"""The Trainer of transformers, with the gradient and the evaluation of psgc."""

try:
    import accelerate as _accelerate  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    need = f"psgc.transformers needs transformers and accelerate ({error})"
    raise ImportError(f"{need}; install them with: pip install transformers accelerate") from None

from psgc.transformers.trainer import Trainer

__all__ = ["Trainer"]
