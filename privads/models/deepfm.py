"""DeepFM: factorization machine and tower over the same vectors."""

from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs
from privads.models.layers import SCALE, Features, Tower, checked, sum_of_pairs


class DeepFM(nn.Module):
    """A factorization machine beside a tower that reads the same vectors (Guo et al. 2017, arXiv 1703.04247).

    ``logit_t = wide_t + s sum over pairs i < j of <v_ti, v_tj> / fields + s u_t . tower(x_0)``, where wide_t is the
    logistic regression of `Features`, v_ti the vector of field i for output t (a number's vector times the number),
    ``x_0 = all v / sqrt(fields)`` and s = SCALE. u starts at 0, so that it starts as the `FM` of the same vectors.
    dim: width of a vector for each output. tower: widths of the hidden layers.
    Shapes: v (rows, fields, outputs, dim), x_0 (rows, fields * outputs * dim), logit (rows,).
    """

    def __init__(self, schema: Schema, *, dim: int = 4, tower: tuple[int, ...] = (8,)) -> None:
        super().__init__()
        self.settings = checked("a DeepFM", {"dim": dim, "tower": tower})
        self.outputs, self.dim = Outputs(schema), dim
        self.features = Features(schema, dim, groups=self.outputs.width, numbers=True)
        self.tower = Tower((self.features.width, *tower))
        self.head = nn.Linear((self.features.width, *tower)[-1], self.outputs.width, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit, or (rows, width) outputs}."""
        wide, vectors, x0 = self.features(batch)
        machine = sum_of_pairs(vectors.unflatten(2, (self.outputs.width, self.dim)))  # (rows, outputs)
        columns = wide + SCALE * (machine + self.head(self.tower(x0)))
        return self.outputs(columns)
