"""Factorization machine."""

from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs
from privads.models.layers import SCALE, Features, checked, sum_of_pairs


class FM(nn.Module):
    """Factorization machine: each pair of fields adds the product of their vectors (Rendle 2010, ICDM, equation 1).

    ``logit_t = wide_t + s sum over pairs i < j of <v_ti, v_tj> / fields``, where wide_t is the logistic regression of
    `Features`, v_ti the vector of field i for output t (a number's vector times the number) and s = SCALE. The sum is
    computed as ``(||sum v_i||^2 - sum ||v_i||^2) / 2``, in O(fields * dim) (lemma 3.1). With v = 0 it is the logistic
    regression; v starts as vectors of about length 1, since its gradient at 0 is 0, and the pairs add some hundredths.
    dim: width of a vector for each output. Shapes: v (rows, fields, outputs, dim), logit (rows,).
    """

    def __init__(self, schema: Schema, *, dim: int = 4) -> None:
        super().__init__()
        self.settings = checked("an FM", {"dim": dim})
        self.outputs, self.dim = Outputs(schema), dim
        self.features = Features(schema, dim, groups=self.outputs.width, numbers=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit, or (rows, width) outputs}."""
        wide, vectors, _ = self.features(batch)
        columns = wide + SCALE * sum_of_pairs(vectors.unflatten(2, (self.outputs.width, self.dim)))  # (rows, outputs)
        return self.outputs(columns)
