"""Shared bottom: one tower below the tasks of all."""

from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs
from privads.models.layers import SCALE, Features, Heads, Tower, checked


class SharedBottom(nn.Module):
    """One tower that all tasks share below a tower for each (Caruana 1997, Machine Learning 28).

    ``logit_t = wide_t + s u_t . tower_t(bottom(x_0))``, where wide_t is the logistic regression of `Features`,
    ``x_0 = [e, x] / sqrt(fields)`` and s = SCALE. u starts at 0, so that it starts as the logistic regression.
    dim: width of an embedding. bottom: widths of the shared layers. tower: those of each task's (default: none).
    Shapes: e (rows, categorical * dim), x (rows, numeric), logit (rows,).
    """

    def __init__(
        self, schema: Schema, *, dim: int = 4, bottom: tuple[int, ...] = (8,), tower: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.settings = checked("a SharedBottom", {"dim": dim, "bottom": bottom, "tower": tower})
        self.outputs = Outputs(schema)
        self.features = Features(schema, dim)
        self.bottom = Tower((self.features.width, *bottom))
        self.heads = Heads(self.outputs.widths.values(), (self.features.width, *bottom)[-1], tower)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit, or (rows, width) outputs}."""
        wide, _, x0 = self.features(batch)
        columns = wide + SCALE * self.heads([self.bottom(x0)] * len(self.outputs.widths))  # (rows, outputs)
        return self.outputs(columns)
