"""A replica node's parts of deletions: how far each is follows from the dataset and its removal."""

from __future__ import annotations

from fedstac.db import nodes
from fedstac.db.connections import Connection

PATIENCE_ATTEMPTS = 3  # of a removal that fails, before that is reported
LONGEST_COMMENT = 500  # characters


async def settle(conn: Connection, origin: str) -> None:
    """Store the outcome of the parts that are done, and of those whose files cannot be moved.

    A part is done when no removal of its dataset is open and no worker has a file of it. What is no more marked or
    deleted has no part.
    """
    await conn.execute(
        """WITH part AS (
               SELECT r.collection, r.dataset, d.state, d.event_state, m.state IS NOT NULL AS is_open,
                      coalesce(m.attempts, 0) >= $3 AS is_failing, left(m.reason, $4) AS obstacle,
                      EXISTS (SELECT FROM fedstac.replica_claim c WHERE c.n = d.n) AS is_worked_on
               FROM fedstac.own_report r
               LEFT JOIN fedstac.replica_dataset d ON d.collection = r.collection AND d.id = r.dataset
               LEFT JOIN fedstac.replica_removal m ON m.n = d.n AND m.state <> 'done'
               WHERE r.consumer = $1 AND r.origin = $2 AND (r.outcome IS NULL OR r.outcome = 'failed')),
           own AS (
               SELECT collection, dataset, CASE
                          WHEN event_state IS NULL
                               OR event_state NOT IN ('marked', 'quarantined', 'deleted', 'purged') THEN 'none'
                          WHEN is_open AND is_failing THEN 'failed'
                          WHEN is_open OR is_worked_on THEN NULL
                          WHEN state = 'catalogued' THEN 'nothing to do'
                          WHEN state IN ('restricted', 'removed') THEN 'ok' END AS outcome,
                      CASE WHEN is_open AND is_failing THEN obstacle END AS comment
               FROM part),
           gone AS (
               DELETE FROM fedstac.own_report r USING own o
               WHERE r.consumer = $1 AND r.origin = $2 AND r.collection = o.collection AND r.dataset = o.dataset
                 AND o.outcome = 'none')
           UPDATE fedstac.own_report r
           SET outcome = o.outcome, comment = o.comment, sends = 0, next_send = clock_timestamp()
           FROM own o
           WHERE r.consumer = $1 AND r.origin = $2 AND r.collection = o.collection AND r.dataset = o.dataset
             AND o.outcome <> 'none' AND (r.outcome, r.comment) IS DISTINCT FROM (o.outcome, o.comment)""",
        nodes.REPLICA, origin, PATIENCE_ATTEMPTS, LONGEST_COMMENT,
    )  # fmt: skip
