"""Validation loss in nats per token, with the state carried or from cold blocks."""

import numpy as np
import torch
from torch.nn import functional as F

from rnn_edge_export.language_model.data import windows
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.language_model.token_files import Tokens

_WINDOW = 1000
_BLOCKS_AT_ONCE = 64


@torch.no_grad()
def carried_loss(model: RecurrentLanguageModel, tokens: Tokens, streams: int = 1) -> float:
    """Mean loss over ``tokens`` [N] with the state carried from a zero start.

    With one stream every token but the first is scored, each with all the text before it. More streams are faster:
    each reads its own part from a zero start, and up to ``streams`` tokens at the ends are left out.
    """
    model.eval()
    device = model.output.weight.device
    span = (len(tokens) - 1) // streams
    state, total, count = model.zero_state(streams), 0.0, 0
    for start in range(0, span, _WINDOW):
        length = min(_WINDOW, span - start)
        places = np.arange(start, start + length + 1)[:, None] + span * np.arange(streams)
        window = torch.from_numpy(tokens[places].astype(np.int64)).to(device)
        logits, state = model(window[:-1], state)
        targets = window[1:]
        total += F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += targets.numel()
    return total / count


@torch.no_grad()
def cold_block_loss(model: RecurrentLanguageModel, tokens: Tokens, block: int = 256) -> float:
    """Mean loss over consecutive blocks of ``block`` tokens, each from a zero state.

    What is left at the end, shorter than a block, is left out. This is how nanoGPT scores a transformer, except that
    it draws its blocks at random.
    """
    model.eval()
    device = model.output.weight.device
    blocks = (len(tokens) - 1) // block
    total, count = 0.0, 0
    for first in range(0, blocks, _BLOCKS_AT_ONCE):
        streams = min(_BLOCKS_AT_ONCE, blocks - first)
        span = tokens[first * block : (first + streams) * block + 1]
        for inputs, targets in windows(span, streams, block):
            logits, _ = model(inputs.to(device), model.zero_state(streams))
            losses = F.cross_entropy(logits.float().flatten(0, 1), targets.to(device).flatten(), reduction="sum")
            total += losses.item()
            count += targets.numel()
    return total / count
