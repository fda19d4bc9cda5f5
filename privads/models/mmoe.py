"""MMoE: multi-gate mixture of experts."""

from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs
from privads.models.layers import SCALE, Experts, Features, Gate, Heads, checked


class MMoE(nn.Module):
    """Experts that all tasks share, mixed by a gate for each task (Ma et al. 2018, KDD, doi 10.1145/3219819.3220007).

    ``mix_t = sum over k of softmax(G_t x_0)_k expert_k(x_0)`` and ``logit_t = wide_t + s u_t . tower_t(mix_t)``, where
    wide_t is the logistic regression of `Features`, ``x_0 = [e, x] / sqrt(fields)`` and s = SCALE. G and u start at 0:
    the gates start as means, the network as the logistic regression.
    dim: width of an embedding. experts: how many. expert: widths of an expert's layers. tower: those of each task's
    (default: none). Shapes: e (rows, categorical * dim), x (rows, numeric), mix_t (rows, expert[-1]), logit (rows,).
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 4,
        experts: int = 3,
        expert: tuple[int, ...] = (8,),
        tower: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.settings = checked("an MMoE", {"dim": dim, "experts": experts, "expert": expert, "tower": tower})
        self.outputs = Outputs(schema)
        self.features = Features(schema, dim)
        self.experts = Experts(experts, self.features.width, expert)
        self.gates = nn.ModuleList(Gate(self.features.width, experts) for _ in schema.tasks)
        self.heads = Heads(self.outputs.widths.values(), (self.features.width, *expert)[-1], tower)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit, or (rows, width) outputs}."""
        wide, _, x0 = self.features(batch)
        experts = self.experts(x0)  # (rows, experts, expert[-1])
        columns = wide + SCALE * self.heads([gate(x0, experts) for gate in self.gates])  # (rows, outputs)
        return self.outputs(columns)
