"""What a codec loses: the Kullback-Leibler divergence of softened logits from their stored form."""

import numpy as np

from fastkd.store.codec import Codec, decode_rows, encode_rows


def kl_rows(logits_BC: np.ndarray, stored_BC: np.ndarray, tau: float) -> np.ndarray:
    """KL(softmax(logits/τ) ‖ softmax(stored/τ)) of each row in nats: float64 (B,), 0 or more but for rounding."""
    log_p, log_q = (_log_softmax(x.astype(np.float64) / tau) for x in (logits_BC, stored_BC))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def _log_softmax(x_BC: np.ndarray) -> np.ndarray:
    x_BC = x_BC - x_BC.max(axis=1, keepdims=True)
    return x_BC - np.log(np.exp(x_BC).sum(axis=1, keepdims=True))


def through(codec: Codec, logits_BC: np.ndarray) -> np.ndarray:
    """Logits as they come back from a store with this codec: float32 (B, C)."""
    numbers = np.arange(len(logits_BC))
    return decode_rows(codec, encode_rows(codec, logits_BC, numbers, 0), numbers, 0)[0]


def codec_kl(codec: Codec, logits_BC: np.ndarray, tau: float) -> float:
    """Mean KL of rows from their stored form at temperature τ, in nats."""
    return float(kl_rows(logits_BC, through(codec, logits_BC), tau).mean())
