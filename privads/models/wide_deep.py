"""Wide & deep."""

from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs
from privads.models.layers import SCALE, Features, Tower, checked


class WideDeep(nn.Module):
    """A linear model beside a tower, trained together (Cheng et al. 2016, arXiv 1606.07792, equation 3).

    ``logit_t = wide_t + s u_t . tower(x_0)``, where wide_t is the logistic regression of `Features`,
    ``x_0 = [e, x] / sqrt(fields)`` and s = SCALE. u starts at 0, so that it starts as the logistic regression. The
    paper's crossed columns are categories of the schema like any other.
    dim: width of an embedding. tower: widths of the hidden layers.
    Shapes: e (rows, categorical * dim), x (rows, numeric), logit (rows,).
    """

    def __init__(self, schema: Schema, *, dim: int = 4, tower: tuple[int, ...] = (8,)) -> None:
        super().__init__()
        self.settings = checked("a WideDeep", {"dim": dim, "tower": tower})
        self.outputs = Outputs(schema)
        self.features = Features(schema, dim)
        self.tower = Tower((self.features.width, *tower))
        self.head = nn.Linear((self.features.width, *tower)[-1], self.outputs.width, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit, or (rows, width) outputs}."""
        wide, _, x0 = self.features(batch)
        columns = wide + SCALE * self.head(self.tower(x0))  # (rows, outputs)
        return self.outputs(columns)
