"""A node: ``--node-config 'partition-id=0 path="/data/impressions.parquet"'`` says where its users' rows are."""

from ads.shared import PLAN, SCHEMA, task
from federation.flower import client_app
from privads.logs.logs import Logs

app = client_app(task(), lambda config: Logs(config["path"], SCHEMA), PLAN)
