"""What a pair that is stored in two formats would show had nothing been tuned: the price of the format alone.

A quantised checkpoint differs from the one it was tuned from for two reasons, and content drift cannot tell them
apart. So the base's own experts are put through the tuned checkpoint's format by plain rounding, and their drift is
measured at the very states, experts and quantile of `content_drift`, as `content_quantisation`. It is an estimate
of quantisation's part, and no bound: the tuned checkpoint's quantiser may have rounded better (calibrated scales)
or worse, and the two parts do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_atlas.checkpoint.index import Checkpoint
from moe_atlas.checkpoint.quantised.decode import round_trip
from moe_atlas.checkpoint.quantised.encoding import Encoded, Encoding
from moe_atlas.families.spec import TensorRef

Storage = dict[str, Encoding | str]
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def storage(checkpoint: Checkpoint, refs: Sequence[TensorRef]) -> Storage:
    """How each of an expert's tensors is stored, by role: a format, or a dtype."""
    found = {ref.role: checkpoint.logical[ref.stored] for ref in refs}
    return {
        role: tensor.encoding if isinstance(tensor, Encoded) else tensor.dtype
        for role, tensor in found.items()
    }


def kept(weights: dict[str, Tensor], formats: Storage) -> dict[str, Tensor]:
    """An expert's tensors as they would come back from being stored like `formats`."""
    return {role: _kept(tensor, formats[role]) for role, tensor in weights.items()}


def _kept(tensor: Tensor, form: Encoding | str) -> Tensor:
    return tensor.to(PLAIN[form]) if isinstance(form, str) else round_trip(form, tensor)
