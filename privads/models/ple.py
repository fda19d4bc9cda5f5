"""PLE: progressive layered extraction."""

from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import Outputs
from privads.models.layers import SCALE, Features, GatedExtraction, Heads, checked


class PLE(nn.Module):
    """Experts of each task and shared ones, mixed layer by layer (Tang et al. 2020, RecSys, 10.1145/3383313.3412236).

    With h_t^0 = h_s^0 = x_0, layer l mixes ``h_t^l = sum over k of softmax(G_t^l h_t^(l-1))_k expert_k``, over task t's
    own experts, which read h_t^(l-1), and the shared ones, which read h_s^(l-1); h_s^l mixes the experts of all. Then
    ``logit_t = wide_t + s u_t . tower_t(h_t^L)``, where wide_t is the logistic regression of `Features`,
    ``x_0 = [e, x] / sqrt(fields)`` and s = SCALE. G and u start at 0: the gates start as means, the network as the
    logistic regression. With layers = 1 this is the paper's CGC.
    dim: width of an embedding. layers: how many. experts, shared: how many for each task, and for all. expert: widths
    of an expert's layers. tower: those of each task's (default: none).
    Shapes: e (rows, categorical * dim), x (rows, numeric), h (rows, expert[-1]), logit (rows,).
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 4,
        layers: int = 2,
        experts: int = 1,
        shared: int = 2,
        expert: tuple[int, ...] = (8,),
        tower: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        sizes: dict[str, int | tuple[int, ...]] = {
            "dim": dim,
            "layers": layers,
            "experts": experts,
            "shared": shared,
            "expert": expert,
            "tower": tower,
        }
        self.settings = checked("a PLE", sizes)
        self.outputs, tasks = Outputs(schema), len(schema.tasks)
        self.features = Features(schema, dim)
        out = (self.features.width, *expert)[-1]
        widths = [self.features.width] + [out] * (layers - 1)
        self.layers = nn.ModuleList(
            GatedExtraction(tasks, experts, shared, width, expert, last=layer == layers - 1)
            for layer, width in enumerate(widths)
        )
        self.heads = Heads(self.outputs.widths.values(), out, tower)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {task: (rows,) logit, or (rows, width) outputs}."""
        wide, _, x0 = self.features(batch)
        mixed = [x0] * (len(self.outputs.widths) + 1)
        for layer in self.layers:
            mixed = layer(mixed)
        columns = wide + SCALE * self.heads(mixed)  # (rows, outputs)
        return self.outputs(columns)
