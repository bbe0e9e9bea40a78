"""What every host of the seam tests offers, and the oracle: one forward without a cache, masks and positions given."""

from __future__ import annotations

import torch
from recompute import recompute
from seam import LAYERS, PAD, VIDEO

__all__ = ["LAYERS", "PAD", "VIDEO", "Host", "causal", "continued", "hide", "randomise", "words"]


def randomise(model):
    """Weights of deviation 0.15, large enough for a wrong mask or position to show in the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" not in name and "ln_q" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def words(count, seed):
    return torch.randint(3, 290, (count,), generator=torch.Generator().manual_seed(seed))


class Host:
    """Two prompts with a video each, 0 and 1, of different length.

    ``inputs(*which)``: the model's arguments for a batch of them; ``stock_rows(which)``: all embeddings of the video
    [P, D], newlines included, by the stock model; ``visual(which)``: which of them are tokens; ``places(which, frame,
    cell)``: where among them the tokens stand; ``grid(which)``: rows and columns of a frame; ``numbers(which)``: rotary
    positions of the prompt [S] or [3, S]."""

    model = None
    before, after = (5, 3), (7, 9)

    def rows(self, which):
        return self.stock[which]

    def ready(self):
        """Everything that the stock model must say is computed here, outside of any block."""
        self.stock = [self.stock_rows(which) for which in (0, 1)]
        return self

    def prompt(self, which):
        placeholders = torch.full((len(self.rows(which)),), VIDEO)
        return torch.cat([self.head(which), placeholders, self.tail(which)])

    def head(self, which):
        return words(self.before[which], 10 + which)

    def tail(self, which):
        return words(self.after[which], 20 + which)

    def numbers(self, which):
        return torch.arange(len(self.prompt(which)))

    def features(self, which):
        """Tokens [T, N, D] by the stock model."""
        rows = self.rows(which)[self.visual(which)]
        return rows.unflatten(0, (-1, self.grid(which)[0] * self.grid(which)[1]))

    @torch.no_grad()
    def embed(self, which, rows, answer):
        table = self.model.get_input_embeddings()
        return torch.cat([table(self.head(which)), rows, table(self.tail(which)), table(answer)])

    def recompute(self, embeds, masks, positions):
        """As the oracle of tests/attach; positions may also be one for all layers."""
        return recompute(self.model, embeds, masks, positions if isinstance(positions, list) else [positions] * LAYERS)


def continued(numbers, count):
    """Positions [.., S] with ``count`` more behind them."""
    more = numbers[..., -1:] + 1 + torch.arange(count)
    return torch.cat([numbers, more], dim=-1)


def causal(total):
    return [torch.ones(total, total).tril().bool() for _ in range(LAYERS)]


def hide(masks, prompt, gone, layer):
    """From ``layer`` on nobody reads the prompt tokens ``gone``; each sees itself: fully masked rows are undefined."""
    for i in range(layer, LAYERS):
        hidden = torch.zeros(len(masks[i]), dtype=torch.bool)
        hidden[:prompt][gone] = True
        masks[i] &= ~hidden
        masks[i] |= torch.diag(hidden)
    return masks
