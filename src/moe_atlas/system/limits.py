"""Limits of a verifier, checked before an audit begins, so that no audit measures more than a receipt can hold."""

from __future__ import annotations

from moe_atlas.errors import InputRefused

MAX_CELLS = 1 << 28
"""Documents times resamples; the bootstrap holds a weight of 8 bytes for each."""
MAX_RECEIPT_BYTES = 64 << 20
MAX_WINDOW_BYTES = 8 << 30
MAX_TOKEN_BYTES = 8 << 30
MAX_LOCK_BYTES = 256 << 20

# Lower bounds of the bytes that an audit writes, so that only an audit that is certain to fail is refused here.
_LAYER_BYTES = 3000  # receipt bytes per layer and checkpoint
_DOMAIN_BYTES = 1000  # receipt bytes per domain
_SKIPPED_BYTES = 40  # receipt bytes per skipped tensor, its name aside
_WINDOW_BYTES = 64  # window data per window and layer, for each checkpoint and for the pair
_EXPERT_BYTES = 12  # window data per window, layer, expert and checkpoint: rho in float64, a count in int32


def require_resamples(documents: int, resamples: int, where: str) -> None:
    """Refuse more resamples of documents than a verifier holds.

    Raises:
        InputRefused: E_PROBE_SIZE, with the number to lower.
    """
    if documents * resamples > MAX_CELLS:
        problem = (
            f"{documents} documents times {resamples} resamples are {documents * resamples}, "
            f"more than the {MAX_CELLS} that a verifier holds: the audit could never end in a receipt"
        )
        step = f"register at most {MAX_CELLS // resamples} documents, or at most {MAX_CELLS // documents} resamples"
        raise InputRefused("E_PROBE_SIZE", where, problem, step)


def require_token_room(least: int, where: str) -> None:
    """Refuse an audit whose token data would be longer than a verifier reads.

    Args:
        least: bytes of the token data if no routed set changes.
        where: the probe file.

    Raises:
        InputRefused: E_PROBE_SIZE.
    """
    if least > MAX_TOKEN_BYTES:
        problem = f"its tokens give at least {least} bytes of token data, more than the {MAX_TOKEN_BYTES} of a verifier"
        raise InputRefused("E_PROBE_SIZE", where, problem, "leave --tokens out, or register fewer windows")


def require_room(
    experts: list[int], windows: tuple[int, int], domains: int, skipped: list[list[str]], where: str
) -> None:
    """Refuse an audit whose receipt or window data would be longer than a verifier reads.

    Args:
        experts: number of experts of each routed layer.
        windows: number of windows of base domains, and number of all windows.
        domains: number of registered domains.
        skipped: for each checkpoint, the names of the skipped tensors, which the receipt lists.
        where: the probe file.

    Raises:
        InputRefused: E_PROBE_SIZE, with the number to lower.
    """
    measured, everything = windows
    sides, pair = len(skipped), len(skipped) == 2
    window = sum(sides * (_EXPERT_BYTES * count + _WINDOW_BYTES) + pair * _WINDOW_BYTES for count in experts)
    data = measured * window + everything * 8 * sides
    if data > MAX_WINDOW_BYTES:
        problem = (
            f"{measured} windows of base domains through {len(experts)} routed layers give at least {data} bytes of "
            f"window data, more than the {MAX_WINDOW_BYTES} that a verifier reads"
        )
        raise InputRefused(
            "E_PROBE_SIZE", where, problem, f"register at most {MAX_WINDOW_BYTES // window} base windows"
        )
    names = sum(len(name) + _SKIPPED_BYTES for side in skipped for name in side)
    receipt = sides * len(experts) * _LAYER_BYTES + domains * _DOMAIN_BYTES + names
    if receipt > MAX_RECEIPT_BYTES:
        problem = (
            f"{len(experts)} routed layers, {domains} domains and {sum(map(len, skipped))} tensors beside the replay "
            f"give a receipt of at least {receipt} bytes, more than the {MAX_RECEIPT_BYTES} that a verifier reads"
        )
        raise InputRefused("E_PROBE_SIZE", where, problem, "register fewer domains")
