"""ESMM: entire space multi-task model of clicks and conversions."""

import torch
from torch import Tensor, nn

from privads.batch import Batch
from privads.logs.schema import Schema
from privads.models.heads import EVENT, head_of, logit_of, rate_of
from privads.models.layers import SCALE, Features, Heads, begin_at, checked


class ESMM(nn.Module):
    """Clicks, and conversions through clicks, on all impressions (Ma et al. 2018, arXiv 1804.07931, equation 1).

    ``p_ctcvr = p_ctr p_cvr`` with ``p = sigmoid(a)`` and ``a = wide + s u . tower(x_0)`` for each of the two, where
    wide is the logistic regression of `Features`, ``x_0 = [e, x] / sqrt(fields)`` and s = SCALE. u starts at 0.
    The outputs are {click: a_ctr, conversion: the logit of p_ctcvr}, so that the ordinary log loss of each row, summed
    over the two labels, is the paper's loss (equation 3).
    The logit of the product is ``-log(exp(-a_ctr) + exp(-a_cvr) + exp(-a_ctr - a_cvr))``. p_cvr has no label.
    The conversion's label must be of the impression: 1 where it was clicked and converted, and 0, observed, where it
    was not clicked. A label that is unobserved without a click would make p_ctcvr the rate among clicks.
    click, conversion: names of the two tasks, by default the schema's in their order; it must have just these two.
    dim: width of an embedding. tower: widths of each one's hidden layers.
    Shapes: e (rows, categorical * dim), x (rows, numeric), a (rows,), logit (rows,).
    """

    def __init__(
        self,
        schema: Schema,
        *,
        click: str = "",
        conversion: str = "",
        dim: int = 4,
        tower: tuple[int, ...] = (8,),
    ) -> None:
        super().__init__()
        sizes = checked("an ESMM", {"dim": dim, "tower": tower})
        known = ", ".join(schema.tasks)
        for task in schema.tasks:
            if head_of(schema.labels[task]) != EVENT:
                raise ValueError(f"an ESMM needs labels of yes or no, and {task!r} is a number or one that waits")
        if len(schema.tasks) != 2:
            raise ValueError(f"an ESMM needs two labels, click and conversion; the schema has {known}")
        click = click or next(task for task in schema.tasks if task != conversion)
        conversion = conversion or next(task for task in schema.tasks if task != click)
        if {click, conversion} != set(schema.tasks):
            raise ValueError(f"click {click!r} and conversion {conversion!r} must be the schema's labels, {known}")
        self.settings = {"click": click, "conversion": conversion, **sizes}
        self.tasks, self.click, self.conversion = schema.tasks, click, conversion
        self.features = Features(schema, dim)
        of_click, of_both = (rate_of(schema.labels[task]) for task in (click, conversion))
        of_conversion = 0.5 if of_both is None else of_both / (of_click or 0.5)
        if of_conversion >= 1:
            raise ValueError(f"the rate of {conversion!r} must be below that of {click!r}: each is a click too")
        starts = [logit_of(of_click or 0.5), logit_of(of_conversion)]
        begin_at(self.features.linear, starts, scale=self.features.scale)
        self.heads = Heads((1, 1), self.features.width, tower)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns {click: (rows,) logit, conversion: (rows,) logit of the click and the conversion}."""
        wide, _, x0 = self.features(batch)
        both = wide + SCALE * self.heads([x0, x0])  # (rows, 2), the click first
        product = -torch.logsumexp(torch.cat([-both, -both.sum(1, keepdim=True)], dim=1), dim=1)
        outputs = {self.click: both[:, 0], self.conversion: product}
        return {task: outputs[task] for task in self.tasks}
